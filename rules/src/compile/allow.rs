//! What lets one half of a connection through, and for whom it counts.
//!
//! In: a rule that accepts, or a pod where none was needed. Out: a chain that writes the id, the counters behind it. What always
//! holds: such a chain decides nothing and comes back; what has no id has no counters, and writes the id of all without.

use std::sync::Arc;

use super::CounterMeaning;
use super::sets::Builder;
use crate::effective::{EffectivePod, EffectiveRule};
use crate::ids::{CONNECTIONS, COUNTERS, Ids, Origin};
use crate::mark::id_mask;
use crate::names;
use crate::policy::Direction;
use crate::ruleset::{Chain, Datum, Expr, Rule, Value};

/// What lets one half of a connection through.
pub(super) enum Allowed<'a> {
    /// A rule.
    Rule(&'a EffectiveRule),
    /// No rule was needed for this pod.
    Default(&'a EffectivePod),
}

impl<'a> Allowed<'a> {
    fn origin(&self) -> Origin<'a> {
        match self {
            Self::Rule(rule) => Origin::Rule(&rule.identity),
            Self::Default(pod) => Origin::Default(&pod.name),
        }
    }

    fn text(&self, half: Direction) -> String {
        match self {
            Self::Rule(rule) => format!("{half} {}", rule.identity.content()),
            Self::Default(pod) => format!("{half} of pod {} without a rule", pod.name),
        }
    }

    /// What the counters of packets and of connections mean.
    fn meanings(&self, direction: Direction) -> [CounterMeaning; 2] {
        match self {
            Self::Rule(rule) => {
                let (index, action) = (rule.index, rule.action);
                [
                    CounterMeaning::Rule { identity: Arc::clone(&rule.identity), index, action },
                    CounterMeaning::RuleConnections { identity: Arc::clone(&rule.identity), index, action },
                ]
            }
            Self::Default(pod) => [
                CounterMeaning::DefaultAllowed { pod: pod.name.clone(), direction },
                CounterMeaning::DefaultAllowedConnections { pod: pod.name.clone(), direction },
            ],
        }
    }
}

impl<'a> Builder<'a> {
    /// The chain to go to, made when it is first asked for.
    pub(super) fn allow(&mut self, ids: &Ids, half: Direction, allowed: &Allowed<'a>) -> String {
        let origin = allowed.origin();
        if let Some(chain) = self.allows.get(&(half, origin)) {
            return chain.clone();
        }
        let text = allowed.text(half);
        if let Some(bits) = ids.bits(half, &origin.counter(half)) {
            let names = [origin.counter(half), origin.connections(half)];
            let counted = names.into_iter().zip([COUNTERS, CONNECTIONS]).zip(allowed.meanings(half));
            for ((name, map), meaning) in counted {
                self.element(map, Value::Mark(bits), Datum::Counter(name.clone()));
                // The chain says what it counts; here it would be half of all that a scrape reads.
                self.named_counter(name, "", meaning);
            }
        }
        let stamp = Expr::SetCtMark { keep: !id_mask(half), value: ids.written(half, origin) };
        let rules = vec![Rule { exprs: vec![stamp], comment: String::new() }];
        let chain = origin.chain(half);
        self.chain(&chain, Chain { hook: None, comment: names::comment(&text), rules });
        self.allows.insert((half, origin), chain.clone());
        chain
    }
}
