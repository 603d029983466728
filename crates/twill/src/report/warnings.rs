//! Report about each warning, with its problem, remedy and severity as fields of their own.

use std::fmt;

use plan::fault::{Severity, Words};
use plan::text::printed;
use plan::warning::Warning;
use serde::{Deserialize, Serialize};

/// Maximum number of warnings in a report.
const MAX_REPORTED: usize = 1000;

/// Warning in the report:
///
/// ```json
/// {"reason":"node-uplink-down","severity":"blocking","problem":"uplink eth0 is down; routes through it wait",
///  "remedy":"Try: ip link set eth0 up"}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WarningReport {
    /// Kind of fault, as the metric `twill_warnings` labels it.
    pub(crate) reason: String,
    pub(crate) severity: Severity,
    #[serde(flatten)]
    pub(crate) words: Words,
}

/// Writes the problem and the remedy in one line, as the log has them.
impl fmt::Display for WarningReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words.fmt(f)
    }
}

impl WarningReport {
    fn new(warning: &Warning) -> Self {
        let Words { problem, remedy } = warning.words();
        let words = Words { problem: printed(problem), remedy: remedy.map(printed) };
        Self { reason: warning.reason(), severity: warning.severity(), words }
    }
}

/// Reports the first [`MAX_REPORTED`] warnings, with a last warning that counts the others.
pub(crate) fn reported(warnings: &[Warning]) -> Vec<WarningReport> {
    let more = warnings.len().saturating_sub(MAX_REPORTED);
    let more = (more > 0).then(|| WarningReport {
        reason: "more".into(),
        severity: Severity::Warning,
        words: Words { problem: format!("and {more} more"), remedy: None },
    });
    warnings.iter().take(MAX_REPORTED).map(WarningReport::new).chain(more).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use plan::warning::NodeFault;

    use super::*;

    /// Warning with that problem and no remedy.
    pub(crate) fn warning(problem: impl Into<String>) -> WarningReport {
        let words = Words { problem: problem.into(), remedy: None };
        WarningReport { reason: "test".into(), severity: Severity::Warning, words }
    }

    #[test]
    fn severity_problem_and_remedy_are_fields_of_their_own() {
        let down = Warning::Node(NodeFault::UplinkDown("eth0".parse().unwrap()));
        let reported = reported(&vec![down.clone(); MAX_REPORTED + 7]);
        assert_eq!(reported[0].to_string(), down.to_string());
        assert_eq!(
            reported[MAX_REPORTED..],
            [WarningReport { reason: "more".into(), ..warning("and 7 more") }]
        );
        let json = serde_json::to_value(&reported[0]).unwrap();
        let sample = r#"{"reason":"node-uplink-down","severity":"blocking","problem":"uplink eth0 is down; routes through it wait",
            "remedy":"Try: ip link set eth0 up"}"#;
        assert_eq!(json, serde_json::from_str::<serde_json::Value>(sample).unwrap());
        assert_eq!(serde_json::from_value::<WarningReport>(json).unwrap(), reported[0]);
        let without = serde_json::to_value(warning("store")).unwrap();
        assert_eq!(without["remedy"], serde_json::Value::Null);
    }
}
