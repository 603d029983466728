//! Report about each warning, with its problem, remedy and severity as fields of their own.

use std::fmt;

use plan::fault::{Severity, Words};
use plan::note::Note;
use plan::text::printed;
use serde::{Deserialize, Serialize};

/// Maximum number of warnings in a report.
const SHOWN: usize = 1000;

/// Warning in the report:
///
/// ```json
/// {"reason":"node-uplink-down","severity":"blocking","problem":"uplink eth0 is down; routes through it wait",
///  "remedy":"Try: ip link set eth0 up"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Warning {
    /// Kind of fault, as the metric `twill_warnings` labels it.
    pub(crate) reason: String,
    pub(crate) severity: Severity,
    #[serde(flatten)]
    pub(crate) words: Words,
}

/// Writes the problem and the remedy in one line, as the log has them.
impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words.fmt(f)
    }
}

impl Warning {
    fn new(note: &Note) -> Self {
        let Words { problem, remedy } = note.words();
        let words = Words { problem: printed(problem), remedy: remedy.map(printed) };
        Self { reason: note.reason(), severity: note.severity(), words }
    }
}

/// Reports the first [`SHOWN`] notes, with a last warning that counts the others.
pub(crate) fn reported(notes: &[Note]) -> Vec<Warning> {
    let more = notes.len().saturating_sub(SHOWN);
    let more = (more > 0).then(|| Warning {
        reason: "more".into(),
        severity: Severity::Warning,
        words: Words { problem: format!("and {more} more"), remedy: None },
    });
    notes.iter().take(SHOWN).map(Warning::new).chain(more).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use plan::note::NodeFault;

    use super::*;

    /// Warning with that problem and no remedy.
    pub(crate) fn warning(problem: impl Into<String>) -> Warning {
        let words = Words { problem: problem.into(), remedy: None };
        Warning { reason: "test".into(), severity: Severity::Warning, words }
    }

    #[test]
    fn severity_problem_and_remedy_are_fields_of_their_own() {
        let down = Note::Node(NodeFault::UplinkDown("eth0".parse().unwrap()));
        let reported = reported(&vec![down.clone(); SHOWN + 7]);
        assert_eq!(reported[0].to_string(), down.to_string());
        assert_eq!(reported[SHOWN..], [Warning { reason: "more".into(), ..warning("and 7 more") }]);
        let json = serde_json::to_value(&reported[0]).unwrap();
        let sample = r#"{"reason":"node-uplink-down","severity":"blocking","problem":"uplink eth0 is down; routes through it wait",
            "remedy":"Try: ip link set eth0 up"}"#;
        assert_eq!(json, serde_json::from_str::<serde_json::Value>(sample).unwrap());
        assert_eq!(serde_json::from_value::<Warning>(json).unwrap(), reported[0]);
        let without = serde_json::to_value(warning("store")).unwrap();
        assert_eq!(without["remedy"], serde_json::Value::Null);
    }
}
