//! `twill-lab bench`: the cost of a cluster of thousands for one node. One namespace runs the daemon; its peers are leases only.
//! The kernel's state and the cost come from `ip`, `bridge` and `/proc`, never from the daemon's own report.

mod arp;
mod changes;
mod churn;
mod held;
mod monitor;
mod nic;
mod options;
mod packets;
mod peers;
mod probe;
mod process;
mod report;
mod restarts;
mod scale;
mod stage;
mod yardstick;

use std::fs;
use std::process::ExitCode;

use options::What;
pub(crate) use options::{HELP, Options};

/// Environment variable with the machine's limit of learned neighbours, which can be read outside the lab only.
const GC_THRESH: &str = "TWILL_LAB_GC_THRESH";

/// Enters a lab and returns the exit code of the bench in it. The error is one line that says what to do.
pub(crate) fn run(options: &Options) -> Result<ExitCode, String> {
    if !lab::enter::inside() {
        return outside();
    }
    lab::enter::enter()?;
    let mut report = report::Report::new(options.json.as_deref())?;
    println!("{}", report::machine());
    match options.what {
        What::Scale => scale::run(options, &mut report)?,
        What::Probe => probe::run(options, &mut report)?,
        What::Churn => {
            churn::run(options, &mut report)?;
            restarts::run(options, &mut report)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn outside() -> Result<ExitCode, String> {
    let limit = fs::read_to_string("/proc/sys/net/ipv4/neigh/default/gc_thresh3").unwrap_or_default();
    let mut command = lab::enter::command()?;
    let status = command.args(std::env::args_os().skip(1)).env(GC_THRESH, limit.trim()).status();
    let status = status.map_err(|e| format!("cannot start setpriv: {e}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the median and the 99th percentile; `None` without values.
fn quantiles<T: PartialOrd + Copy>(values: &[T]) -> Option<(T, T)> {
    let mut values = values.to_vec();
    values.sort_by(|one, other| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal));
    let last = values.len().checked_sub(1)?;
    Some((values[last / 2], values[last * 99 / 100]))
}

#[cfg(test)]
mod tests {
    use super::quantiles;

    #[test]
    fn quantiles_work_for_any_number_of_values() {
        assert_eq!(quantiles::<u32>(&[]), None);
        assert_eq!(quantiles(&[7]), Some((7, 7)));
        assert_eq!(quantiles(&[3, 1, 2]), Some((2, 2)));
        let hundred: Vec<_> = (1..=101).rev().collect();
        assert_eq!(quantiles(&hundred), Some((51, 100)));
    }
}
