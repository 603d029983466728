//! `twill daemon`: starts the parts of the daemon in order and connects them. Its threads:
//!
//! - the reconcile loop (this one, blocking);
//! - `servers`: the store and the HTTP servers (tokio);
//! - `monitor`: the kernel's events;
//! - `rules`: nftables' events, if the kernel has nf_tables;
//! - `legacy rules`: polls the rules of iptables-legacy;
//! - `probes`, unless `--probe=off`.
//!
//! The process gives up the rights that it does not need before it starts the first of them. Stopping equals being
//! killed: there is nothing to undo, and the data plane stays as it is. Rules that drop packets expire by themselves.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use kernel::{Change, Kernel, LegacyWatch, Watch};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use store::View;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::cache::Cache;
use crate::flags::Flags;
use crate::identity::{self, Identity};
use crate::locks::Locks;
use crate::metrics::Metrics;
use crate::own_lease::StoreHandle;
use crate::reconcile::{Memory, Reconciler};
use crate::report;
use crate::trigger::{self, Cause, CauseSender};
use crate::{confine, diff_requests, http, logging, notify, probe, readiness};

/// Minimum limit of open files with which the daemon can start.
const LEAST_FILES: u64 = 32;

/// Runs the daemon; returns only if the start fails, with the reason. SIGTERM and SIGINT end the process from the thread
/// `servers`.
pub(crate) fn run(flags: &Flags) -> anyhow::Result<()> {
    logging::init(flags.verbosity, flags.log_format);
    log_flags(flags);
    flags.check().map_err(anyhow::Error::msg)?;
    check_open_files()?;
    let mut locks = Locks::default();
    locks.take_file(&flags.subnet_file)?;
    let (cause_sender, trigger) = trigger::channel();
    let (metrics, report_sender) = (Arc::new(Metrics::new()), report::new_sender());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (diff_requests, diff_responder) = diff_requests::channel(cause_sender.clone());
    let servers = runtime.block_on(http::bind(flags, &metrics, &report_sender, diff_requests))?;
    locks.state_healthz(flags.healthz_port);
    let signals = runtime.block_on(async { Signals::register() }).context("cannot handle signals")?;
    let _confined = confine::confine(flags);
    let tasks = runtime.handle().clone();
    tasks.spawn(readiness::run(report_sender.subscribe()));
    let woken = cause_sender.clone();
    spawn("servers", move || runtime.block_on(serve(servers, signals, &woken)))?;

    let mut kernel = Kernel::open().context("opening netlink")?;
    kernel.check_right()?;
    let store = flags.store();
    metrics.set_store_stats(store.stats());
    let cache = Cache::new(Cache::path(&flags.cache_dir, &flags.subnet_file), store.identity());
    let source =
        StoreHandle { store: store.clone(), tasks: tasks.clone(), cause_sender: cause_sender.clone() };
    let Identity { config, node, former, uplink_reason, own_lease, remembered, history, home } =
        identity::establish(flags, &source, &mut kernel, &mut locks, &cache, &report_sender)?;
    let backend_source = flags.backend_source(own_lease.conf());
    info!("our subnet is {}, backend {} ({backend_source})", node.subnet, config.backend);
    report::wait_for(&report_sender, "the first list of leases");

    let memory = Memory::from_cache(&remembered, history, &node, former).with_former_addresses(home);
    let (view_in, view) = watch::channel(View { leases: remembered, ..View::default() });
    tasks.spawn(store.watch(view_in));
    tasks.spawn(send_on_change(view.clone(), cause_sender.clone()));
    let monitor = Watch::open(&kernel).context("opening the kernel's monitor")?;
    let filter = monitor.filter();
    watch_rules(&kernel, flags, &cause_sender)?;
    spawn("monitor", listen(monitor, |monitor| monitor.wait().map(|event| event.change), &cause_sender))?;
    Reconciler {
        kernel,
        filter,
        config,
        node,
        uplink_reason,
        own_lease,
        locks,
        view,
        cache,
        flags: flags.clone(),
        metrics,
        report_sender,
        diff_responder,
        probes: probe::start(flags.probe, &cause_sender)?,
        memory,
    }
    .run(trigger)
}

/// Writes the first log lines: flags that differ from their defaults, settings that are ignored and flags without effect.
fn log_flags(flags: &Flags) {
    info!(target: logging::OWN, "twill {} starts: {}", env!("CARGO_PKG_VERSION"), flags.changed());
    debug!(target: logging::OWN, "all flags: {}", flags.shown());
    flags.ignored.iter().for_each(|what| error!("ignored: {what}"));
    flags.without_effect().iter().for_each(|what| warn!("{what}"));
    if !(flags.vmodule.is_empty() && flags.log_backtrace_at.is_empty()) {
        debug!("--vmodule and --log_backtrace_at are accepted and have no effect");
    }
}

/// Raises the limit of open files to the hard limit, as Go's runtime does. Returns an error if it is below
/// [`LEAST_FILES`].
fn check_open_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let limit = setrlimit(Resource::Nofile, raised).map_or(limit, |()| raised);
    match limit.current {
        Some(most) if most < LEAST_FILES => anyhow::bail!(
            "the limit of open files is {most}, and a start needs {LEAST_FILES}; {}",
            kernel::remedy(Errno::MFILE.raw_os_error())
        ),
        _ => Ok(()),
    }
}

/// Starts the threads that watch the traffic rules. nftables, and with it iptables-nft, sends events; the rules of
/// iptables-legacy have to be polled.
fn watch_rules(kernel: &Kernel, flags: &Flags, cause_sender: &CauseSender) -> anyhow::Result<()> {
    match kernel.watch_firewall() {
        Ok(rules) => {
            spawn("rules", listen(rules, |rules| rules.wait().map(|()| Change::Firewall), cause_sender))?;
        }
        // A kernel without nf_tables has no such rules.
        Err(error) => debug!("cannot watch nftables: {error}"),
    }
    let wait = |rules: &mut LegacyWatch| {
        rules.wait();
        Ok(Change::Firewall)
    };
    spawn("legacy rules", listen(LegacyWatch::new(flags.rules.iptables_resync), wait, cause_sender))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map(drop)
        .with_context(|| format!("starting thread {name}"))
}

/// Signals that the daemon handles: SIGTERM and SIGINT stop it, SIGHUP triggers a reconcile pass.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn register() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns on SIGTERM or SIGINT. A SIGHUP is repeated until it is queued, because it must not be lost.
    async fn stopped(mut self, cause_sender: &CauseSender) {
        let hangups = async {
            while self.hangup.recv().await.is_some() {
                info!("SIGHUP: checking everything again");
                while !cause_sender.send(Cause::Hangup) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = hangups => {}
        }
    }
}

/// Serves until SIGTERM or SIGINT, then ends the process. The next start repairs a half-done reconcile pass.
async fn serve(servers: http::Servers, signals: Signals, cause_sender: &CauseSender) {
    let socket = servers.socket.clone();
    tokio::select! {
        () = signals.stopped(cause_sender) => {}
        () = servers.run() => {}
    }
    notify::stopping();
    info!("stopping; routes and devices stay as they are");
    // The socket has no listener any more; a left-over file would only confuse `twill status`.
    let _ = std::fs::remove_file(socket);
    std::process::exit(0);
}

async fn send_on_change(mut view: watch::Receiver<View>, cause_sender: CauseSender) {
    while view.changed().await.is_ok() {
        cause_sender.send(Cause::Leases);
    }
}

/// Returns a thread body that turns the kernel's events into causes in an endless loop. If the monitor fails, it reports
/// an overrun after 1 s.
fn listen<M: Send + 'static>(
    mut monitor: M,
    wait: fn(&mut M) -> Result<Change, kernel::Error>,
    cause_sender: &CauseSender,
) -> impl FnOnce() + Send + use<M> {
    let cause_sender = cause_sender.clone();
    move || {
        loop {
            let change = wait(&mut monitor).unwrap_or_else(|error| {
                error!("cannot receive events of the kernel, reconciling every second instead: {error}");
                thread::sleep(Duration::from_secs(1));
                Change::Overrun
            });
            cause_sender.send(Cause::Kernel(change));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// ARCHITECTURE.md lists the threads that the daemon starts, and the main thread.
    #[test]
    fn the_documents_list_every_thread_and_no_other() {
        let text = include_str!("../../../ARCHITECTURE.md");
        let (_, section) = text.split_once("\n## Threads\n").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
        let listed: BTreeSet<&str> =
            cells.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).collect();
        let source = [include_str!("daemon.rs"), include_str!("probe.rs")];
        let source = source.map(|text| text.split("#[cfg(test)]").next().unwrap());
        let starts = ["spawn(\"", ".name(\""].into_iter();
        let started = starts.flat_map(|start| source.iter().flat_map(move |text| text.split(start).skip(1)));
        let started: BTreeSet<&str> = started.map(|rest| rest.split('"').next().unwrap()).collect();
        assert_eq!(listed, started);
    }
}
