//! From a Kubernetes object as JSON to its meaning, or to a refusal with a reason.

/// Why an object was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong, each with the path of the field.
    pub faults: Vec<Fault>,
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field, as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}
