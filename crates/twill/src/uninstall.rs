//! `twill uninstall`: removes from this node what the footprint lists as ours. With `--hand-over` it removes only what
//! flannel would not have written, so that flannel goes on without losing a packet. The lease stays in the store.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use kernel::{Kernel, Observed, Outcome};
use plan::owned::Owned;
use plan::state::{Route, RoutePath};
use plan::warning::{Unclaimed, Warning};
use plan::{Op, State};

use crate::cache::Cache;
use crate::diff;
use crate::errno::WithRemedy;
use crate::files;
use crate::flags::{Extent, LogFormat, UninstallFlags};
use crate::footprint::Footprint;
use crate::locks::{self, Locks};
use crate::logging;

/// Runs the command. Returns an error if a daemon still runs, the kernel cannot be read, or something cannot be removed.
pub(crate) fn run(flags: &UninstallFlags) -> anyhow::Result<()> {
    logging::init(0, LogFormat::Text);
    let footprint_file = Footprint::path(&flags.subnet_file);
    let Some(footprint) = Footprint::read(&footprint_file) else {
        println!(
            "nothing to remove: there is no usable {}. If objects of twill remain, start the daemon once, stop it and \
             try again",
            footprint_file.display()
        );
        return Ok(());
    };
    let mut locks = Locks::default();
    locks.take_file(&flags.subnet_file).context("stop the daemon first")?;
    let mut kernel = Kernel::open().context("opening netlink")?;
    if !flags.dry_run {
        kernel.check_right()?;
    }
    let mut owned = footprint.owned();
    // The traffic rules may belong to another daemon by now.
    owned.firewall &= locks.keep_firewall().is_us();
    let Observed { state: observed, underlay, .. } = kernel.dump(&owned).context("reading the kernel")?;
    let facts = &underlay.firewall;
    if let Some(why) = facts.unread.first().or(facts.no_nft.as_ref().filter(|_| facts.has_our_tables())) {
        bail!("the traffic rules cannot be read, so nothing was removed: {why}");
    }
    let ops = match flags.extent {
        Extent::HandOver => plan::hand_over(&observed, &owned, &footprint.announced_devices),
        Extent::Everything => {
            let unclaimed = plan::unclaimed(&State::default(), &observed, &owned, &underlay);
            if let Some(route) = unclaimed.iter().find_map(|warning| on_our_device(warning, &owned)) {
                bail!(
                    "{route} is not ours and would be removed with its device. If flannel runs here now, use \
                     --hand-over; otherwise remove that route first"
                );
            }
            plan::uninstall(&observed, &owned)
        }
    };
    diff::print(&ops);
    let files = left_files(flags, footprint.socket, footprint_file);
    for file in &files {
        println!("- file {}", file.display());
    }
    if flags.dry_run {
        return Ok(());
    }
    apply(&mut kernel, &ops)?;
    // The footprint goes last, since a second attempt needs it.
    for file in &files {
        files::remove(file)
            .map_err(|error| anyhow!("removing {}: {}", file.display(), WithRemedy(&error)))?;
    }
    println!("done; our lease stays in the store: delete it there if this node does not come back");
    Ok(())
}

fn on_our_device<'a>(warning: &'a Warning, owned: &Owned) -> Option<&'a Route> {
    match warning {
        Warning::Unclaimed(Unclaimed::Route(route)) => {
            matches!(route.path, RoutePath::Via { link, .. } if owned.links.contains(&link)).then_some(route)
        }
        _ => None,
    }
}

fn apply(kernel: &mut Kernel, ops: &[Op]) -> anyhow::Result<()> {
    let outcomes = kernel.apply(ops);
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(
            |outcome| if let Outcome::Failed(error) = outcome { Some(error.to_string()) } else { None },
        )
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("some objects could not be removed; try again: {}", failed.join("; "))
}

/// Returns our files that exist. With `--hand-over` the subnet file stays, since flannel goes on with it.
fn left_files(flags: &UninstallFlags, socket: PathBuf, footprint: PathBuf) -> Vec<PathBuf> {
    let subnet_file = (flags.extent == Extent::Everything).then(|| flags.subnet_file.clone());
    let all = [
        subnet_file,
        Cache::path(&flags.cache_dir, &flags.subnet_file),
        Some(locks::lock_file(&flags.subnet_file)),
        Some(socket),
        Some(footprint),
    ];
    all.into_iter().flatten().filter(|path| path.exists()).collect()
}
