//! Severity and texts of a fault, as data. Readiness, the log, `twill status` and the metrics read the same values.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Effect of a fault on the readiness of this node, the gravest first: `"blocking"`, `"unready"` or `"warning"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The node is not ready, and no new pod should be attached: the subnet file is not written.
    Blocking,
    /// The node is not ready, though pods can be attached.
    Unready,
    /// The node stays ready.
    Warning,
}

/// Words of a fault. Sample of the serialized form:
///
/// ```json
/// {"problem": "uplink eth0 is down; routes through it wait", "remedy": "Try: ip link set eth0 up"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// Observation, its effect and its possible causes, without a full stop at the end.
    pub problem: String,
    /// Imperative or full sentence that says what to do, without a full stop. `None` if nothing is to be done here,
    /// or if the problem names it.
    pub remedy: Option<String>,
}

impl Words {
    pub(crate) fn new(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: None }
    }

    /// Adds the remedy.
    pub(crate) fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// Puts the subject in front of the problem.
    pub(crate) fn about(self, subject: impl fmt::Display) -> Self {
        Self { problem: format!("{subject}: {}", self.problem), ..self }
    }
}

/// Writes the problem and the remedy as two sentences.
impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)?;
        let Some(remedy) = &self.remedy else { return Ok(()) };
        let end = if self.problem.ends_with('?') { " " } else { ". " };
        write!(f, "{end}{remedy}")
    }
}
