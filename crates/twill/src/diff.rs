//! `twill diff`: prints the ops between the kernel's observed and desired state. The running daemon computes them, or
//! with `--offline` this command does from store and kernel. It changes nothing: it acquires no lease, takes no lock and
//! writes no row.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::{Context, bail};
use kernel::Kernel;
use plan::lease::{Lease, Leases};
use plan::other_daemons::OtherDaemons;
use plan::{Memory, Op, Situation, Verb};
use serde::{Deserialize, Serialize};

use crate::flags::{DiffFlags, DiffSource, Flags};
use crate::footprint::Footprint;
use crate::identity::Place;
use crate::{client, logging, status, subnet_file};

/// Format of the answer; it grows when a field changes its meaning.
pub(crate) const FORMAT: u32 = 1;

/// Answer to `GET /diff` on the socket, and output of `--json`: `{"format":1,"ops":[{"verb":"add","object":{...}}]}`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Difference {
    pub(crate) format: u32,
    /// Ops in the order in which the daemon would apply them.
    pub(crate) ops: Vec<Op>,
}

/// Prints the ops. Exit code 0 means none and 1 means some; the caller turns an error into 2.
pub(crate) fn run(flags: &DiffFlags) -> anyhow::Result<ExitCode> {
    let difference = match &flags.source {
        DiffSource::Daemon(socket) => {
            let answer = client::get(socket, "/diff")?;
            serde_json::from_slice(&answer).context("the daemon is of another version")?
        }
        DiffSource::Store(flags) => Difference { format: FORMAT, ops: offline(flags)? },
    };
    if difference.format != FORMAT {
        bail!("the format of the daemon is {}, that of this command {FORMAT}", difference.format);
    }
    if flags.json {
        println!("{}", serde_json::to_string(&difference)?);
    } else {
        print(&difference.ops);
    }
    Ok(if difference.ops.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints one line per op in ip(8)'s words: `+` is missing, `-` is superfluous, `~` differs.
pub(crate) fn print(ops: &[Op]) {
    let colour = status::is_coloured();
    for op in ops {
        let shade = match op.verb {
            Verb::Add => AnsiColor::Green,
            Verb::Replace => AnsiColor::Yellow,
            Verb::Recreate | Verb::Delete => AnsiColor::Red,
        };
        let style = if colour { shade.on_default() } else { Style::new() };
        println!("{style}{op}{style:#}");
    }
}

/// Returns the ops that a daemon with these flags would apply first.
fn offline(flags: &Flags) -> anyhow::Result<Vec<Op>> {
    logging::init(flags.verbosity, flags.log_format);
    flags.ignored.iter().for_each(|what| eprintln!("twill: ignored: {what}"));
    flags.check().map_err(anyhow::Error::msg)?;
    let store = flags.store();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let conf = runtime.block_on(store.net_conf())?;
    let leases = runtime.block_on(store.leases(&conf))?;
    let config = flags.config(&conf);
    let mut kernel = Kernel::open().context("opening netlink")?;
    let place = Place::find(flags, &config, &mut kernel, &[])?;
    let own = leases.iter().find(|lease| place.requester.owns(lease));
    let own = own.context("the store has no lease of this node: the daemon would take one first")?;
    let macs = config.backend.macs(Some(&own.announced), &place.underlay, place.drawn());
    let others = leases.iter().filter(|lease| !place.requester.owns(lease)).map(|lease| &lease.announced);
    let own = Lease { announced: config.backend.announced(config.families(), macs, others), ..own.clone() };
    let footprint = Footprint::read(&Footprint::path(&flags.subnet_file));
    let networks = subnet_file::networks(&flags.subnet_file);
    let node = place.node(&own);
    let memory = Memory::of(place.former(&own, footprint.as_ref(), &networks));
    if config.families().all(|family| own.subnet.of(family).is_none()) {
        bail!("our lease {} is of no family that is configured: the daemon would take another", own.subnet);
    }
    let leases = Leases::Listed(leases);
    let scope = plan::scope(&config, &node, &leases, &OtherDaemons::default(), &memory, std::iter::empty());
    let observed = kernel.dump(&scope).context("reading the kernel")?;
    let plan = plan::plan(&Situation {
        observed: &observed.state,
        memory: &memory,
        ..Situation::at_start(&config, &node, &leases, &scope, &observed.underlay)
    });
    Ok(plan.ops)
}

#[cfg(fuzzing)]
pub(crate) fn fuzz(json: &[u8]) {
    if let Ok(difference) = serde_json::from_slice::<Difference>(json) {
        difference.ops.iter().for_each(|op| drop(op.to_string()));
    }
}
