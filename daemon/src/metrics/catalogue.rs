//! Every metric there is.
//!
//! In: nothing. Out: [`ALL`], which the encoders write from and `docs/metrics.md` lists. What always holds: a name, its type,
//! its labels and its help stand here and nowhere else in the code; a unit is the name's last word.

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It rises, and is exported with `_total` behind its name.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It is a distribution.
    Histogram,
}

impl Kind {
    /// The word of `# TYPE`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric with all its series.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name, of a counter without `_total`.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// The names of its labels; a histogram's `le` is not among them.
    pub labels: &'static [&'static str],
    /// What it means, on one line.
    pub help: &'static str,
}

impl Family {
    /// The unit, where it has one of Prometheus' base units.
    pub fn unit(&self) -> Option<&'static str> {
        ["seconds", "bytes"].into_iter().find(|unit| self.name.ends_with(&format!("_{unit}")))
    }

    /// What stands behind the name in each line of a series that is no histogram's.
    pub const fn suffix(&self) -> &'static str {
        match self.kind {
            Kind::Counter => "_total",
            Kind::Gauge | Kind::Histogram => "",
        }
    }
}

macro_rules! families {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Family = Family { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*

        /// All of them, in the order in which they are exported.
        pub const ALL: &[Family] = &[$($constant),*];
    };
}

families! {
    RULE_PACKETS = Counter "flatfell_rule_packets" ["namespace", "policy", "direction", "rule", "action"]
        "Packets of connections that a rule accepted, both ways; packets that a rule denied or passed on";
    RULE_BYTES = Counter "flatfell_rule_bytes" ["namespace", "policy", "direction", "rule", "action"]
        "Bytes of those packets";
    RULE_CONNECTIONS = Counter "flatfell_rule_connections" ["namespace", "policy", "direction", "rule", "action"]
        "Connections that a rule accepted";
    RULE_INFO = Gauge "flatfell_rule_info" ["namespace", "policy", "direction", "rule", "index", "peers", "ports"]
        "What a rule says, and its place in its policy";
    DEFAULT_ALLOWED_PACKETS = Counter "flatfell_default_allowed_packets" ["namespace", "pod", "direction"]
        "Packets, both ways, of a pod's connections that no rule decided and that passed";
    DEFAULT_ALLOWED_BYTES = Counter "flatfell_default_allowed_bytes" ["namespace", "pod", "direction"]
        "Bytes of those packets";
    DEFAULT_ALLOWED_CONNECTIONS = Counter "flatfell_default_allowed_connections" ["namespace", "pod", "direction"]
        "Those connections";
    DROPPED_PACKETS = Counter "flatfell_dropped_packets" ["namespace", "pod", "direction"]
        "Packets that a pod's isolation dropped";
    DROPPED_BYTES = Counter "flatfell_dropped_bytes" ["namespace", "pod", "direction"]
        "Bytes of those packets";
    WOULD_DROP_PACKETS = Counter "flatfell_would_drop_packets" ["namespace", "pod", "direction"]
        "Packets that audited policies would have dropped";
    WOULD_DROP_BYTES = Counter "flatfell_would_drop_bytes" ["namespace", "pod", "direction"]
        "Bytes of those packets";
    POD_ISOLATED_BY_INFO = Gauge "flatfell_pod_isolated_by_info" ["namespace", "pod", "direction", "policy"]
        "A policy that isolates a pod in a direction";
    GUARD_PACKETS = Counter "flatfell_guard_packets" ["guard"]
        "Packets that go a way round every policy and were dropped";
    GUARD_BYTES = Counter "flatfell_guard_bytes" ["guard"]
        "Bytes of those packets";
    SPOOFED_PACKETS = Counter "flatfell_spoofed_packets" ["namespace", "pod"]
        "Frames that a pod sent as somebody else and that were dropped";
    SPOOFED_BYTES = Counter "flatfell_spoofed_bytes" ["namespace", "pod"]
        "Bytes of those frames";
    UNATTRIBUTED_PACKETS = Counter "flatfell_unattributed_packets" []
        "Packets that passed and are counted for no rule and no pod";
    UNATTRIBUTED_BYTES = Counter "flatfell_unattributed_bytes" []
        "Bytes of those packets";
    RULE_IDS = Gauge "flatfell_rule_ids" ["direction"]
        "Ids that connections are counted by, in use or not free yet";
    RULE_IDS_LIMIT = Gauge "flatfell_rule_ids_limit" ["direction"]
        "How many such ids there are";
    WITHOUT_RULE_ID = Gauge "flatfell_without_rule_id" []
        "Rules and pods for which no id was left: their traffic is not attributed";
    SERIES = Gauge "flatfell_series" []
        "Series of single rules and pods that are exported";
    SERIES_LIMIT = Gauge "flatfell_series_limit" []
        "How many of them may be";
    SERIES_LEFT_OUT = Gauge "flatfell_series_left_out" []
        "Series of single rules and pods that are not exported because there are too many";
    COUNTERS_READ_FAILURES = Counter "flatfell_counters_read_failures" []
        "Scrapes for which the kernel's counters could not be read";
    COUNTERS_AGE = Gauge "flatfell_counters_age_seconds" []
        "How long ago the kernel's counters were read that this scrape shows";
    READY = Gauge "flatfell_ready" []
        "Whether /readyz says so";
    SYNCED = Gauge "flatfell_synced" []
        "Whether the kernel has the newest policy";
    GENERATION = Gauge "flatfell_generation" []
        "Number of the current policy in ct marks";
    PAUSED = Gauge "flatfell_paused" []
        "Whether a pause is in effect: this node enforces no policy";
    PAUSED_UNTIL = Gauge "flatfell_paused_until_timestamp_seconds" []
        "When the pause ends; no series without one";
    BRIDGE_FILTER = Gauge "flatfell_bridge_filter" ["bridge", "family"]
        "Whether a pod bridge shows its traffic to policy";
    FOREIGN_ENGINE_INFO = Gauge "flatfell_foreign_engine_info" ["engine"]
        "Another policy engine's rules, or kube-proxy in IPVS mode, on this node; /readyz says what to do";
    PODS = Gauge "flatfell_pods" ["direction", "isolation"]
        "Pods of this node, by direction and whether they are open, isolated or audited";
    POLICIES = Gauge "flatfell_policies" ["kind", "mode"]
        "Policies that are known, by kind and whether they are enforced, audited or refused";
    POLICY_INVALID = Gauge "flatfell_policy_invalid" ["namespace", "policy"]
        "A policy that is refused: it isolates what it selects and allows nothing";
    SOURCE_PROBLEMS = Gauge "flatfell_source_problems" ["severity"]
        "What is wrong with objects, as the source has them";
    EVENT_TO_KERNEL = Histogram "flatfell_event_to_kernel_seconds" []
        "Seconds from reading the oldest change of a batch to the kernel's acknowledgement";
    CREATION_TO_KERNEL = Histogram "flatfell_creation_to_kernel_seconds" ["kind"]
        "Seconds from an object's creation timestamp (whole seconds, the API server's clock) to the kernel's acknowledgement";
    CREATION_AHEAD = Counter "flatfell_creation_ahead" ["kind"]
        "Created objects whose timestamp was ahead of this node's clock: they are not in the distribution";
    CHANGES_WAITING = Gauge "flatfell_changes_waiting" []
        "Changes that were taken in and are not in the kernel yet";
    OLDEST_CHANGE_WAITING = Gauge "flatfell_oldest_change_waiting_seconds" []
        "How long the oldest of them has waited";
    TRANSACTIONS = Counter "flatfell_transactions" ["result"]
        "Transactions with the kernel";
    TRANSACTION_DURATION = Histogram "flatfell_transaction_duration_seconds" []
        "Seconds from sending a transaction to its last answer";
    TRANSACTION_OPERATIONS = Histogram "flatfell_transaction_operations" []
        "Operations in a transaction";
    RETRIES = Counter "flatfell_retries" []
        "Times that policy was tried again after a failure";
    REPAIRS = Counter "flatfell_repairs" ["kind"]
        "Times that something was set right that somebody else had changed";
    TAKEOVERS = Counter "flatfell_takeovers" []
        "Times a second table took over because the first refused changes";
    FLOWS_CUT = Counter "flatfell_flows_cut" []
        "Running connections that were cut because policy no longer allows them";
    PROGRAMMED_OBJECTS = Gauge "flatfell_programmed_objects" ["kind"]
        "What the daemon's tables hold in the kernel";
    CONNTRACK_ENTRIES = Gauge "flatfell_conntrack_entries" []
        "Connections in this node's table";
    CONNTRACK_ENTRIES_LIMIT = Gauge "flatfell_conntrack_entries_limit" []
        "How many there may be";
    WATCH_HEALTHY = Gauge "flatfell_watch_healthy" ["resource"]
        "Whether the API server's list is complete and its changes are heard";
    WATCH_SILENCE = Gauge "flatfell_watch_silence_seconds" ["resource"]
        "Seconds since the API server last said anything about the resource";
    WATCH_LISTS = Counter "flatfell_watch_lists" ["resource"]
        "Complete lists";
    WATCH_FAILURES = Counter "flatfell_watch_failures" ["resource", "reason"]
        "What went wrong between this daemon and the API server";
    OBJECTS = Gauge "flatfell_objects" ["resource"]
        "Objects that are known";
    NODE_UNPROTECTED = Gauge "flatfell_node_unprotected_seconds" []
        "Seconds that pods of this node may have run before policy was first in force";
    FLOW_LOG_RECORDS = Counter "flatfell_flow_log_records" ["verdict"]
        "Records in the flow log";
    FLOW_LOG_LOST = Counter "flatfell_flow_log_lost" ["reason"]
        "Denied and audited packets without a record";
    FLOW_EVENTS = Counter "flatfell_flow_events" ["result"]
        "Kubernetes Events about denials";
    CNI_REQUESTS = Counter "flatfell_cni_requests" ["command", "outcome"]
        "Requests of the CNI plugin";
    CNI_CONFLIST_INSERTIONS = Counter "flatfell_cni_conflist_insertions" []
        "Times that the CNI plugin was put into its chain, where others had written it";
    BUILD_INFO = Gauge "flatfell_build_info" ["version"]
        "The version that runs";
    PROCESS_CPU = Counter "process_cpu_seconds" []
        "User and system CPU time of the daemon";
    PROCESS_RESIDENT_MEMORY = Gauge "process_resident_memory_bytes" []
        "Resident memory of the daemon";
    PROCESS_VIRTUAL_MEMORY = Gauge "process_virtual_memory_bytes" []
        "Virtual memory of the daemon";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" []
        "Open file descriptors";
    PROCESS_MAX_FDS = Gauge "process_max_fds" []
        "How many there may be";
    PROCESS_START_TIME = Gauge "process_start_time_seconds" []
        "When the daemon was started, in Unix time";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let names: BTreeSet<&str> = ALL.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name stands twice");
        for family in ALL {
            let Family { name, kind, labels, help } = family;
            assert!(name.starts_with("flatfell_") || name.starts_with("process_"), "{name}");
            let is_word = |word: &str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(is_word(name) && labels.iter().all(|label| is_word(label)), "{name}");
            assert!(!name.ends_with("_total") && !name.ends_with("_count") && !name.ends_with("_sum"), "{name}");
            assert!(!help.is_empty() && !help.ends_with('.') && !help.contains(['\n', '\\']), "{name}: {help}");
            assert!(!name.ends_with("_info") || *kind == Kind::Gauge, "{name}");
            for unit in ["milliseconds", "_ms", "kilobytes", "_kb", "percent"] {
                assert!(!name.contains(unit), "{name}");
            }
        }
    }
}
