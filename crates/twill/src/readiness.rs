//! Reports readiness and status of this node to the service manager.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::warn;

use crate::notify;
use crate::report::Report;

/// Maximum time between two checks of the report, since time alone can change readiness.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Sends readiness and status to the service manager whenever a report changes them. Returns when the reports end, or
/// at once without a service manager.
pub(crate) async fn run(mut reports: watch::Receiver<Arc<Report>>) {
    let (mut sent, mut ready, mut complained) = (String::new(), false, false);
    while notify::socket().is_some() {
        let report = reports.borrow_and_update().clone();
        let readiness = report.readiness();
        let first = !ready && readiness.is_ok();
        let status = match readiness {
            Ok(()) => format!("ready, {} peers", report.paths.len()),
            Err(why) if report.waiting_for.is_some() => why,
            Err(why) => format!("not ready: {why}"),
        };
        let line = format!("STATUS={}", status.replace('\n', " "));
        let message = if first { format!("READY=1\n{line}") } else { line };
        if first || status != sent {
            match notify::send(&message) {
                Ok(()) => (sent, ready) = (status, ready || first),
                Err(error) if !complained => {
                    warn!("cannot report the state of this node to systemd: {error}");
                    complained = true;
                }
                // The next check tries again.
                Err(_) => {}
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(CHECK_INTERVAL, reports.changed()).await {
            return;
        }
    }
}
