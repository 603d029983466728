//! `twill-lab`: shows the pod network at work (`demo`), or keeps one up to play in (`shell`). It must only tell what it
//! has seen happen, and its exit code says whether that was what should happen.

mod backend;
mod demo;
mod paint;
mod shell;

use std::path::Path;
use std::process::ExitCode;

use lexopt::Arg::{Long, Short, Value};
use lexopt::ValueExt as _;

use backend::Backend;

const HELP: &str = "\
twill-lab: a pod network of four nodes in namespaces of its own; needs no root, touches nothing, leaves nothing.

Usage: twill-lab [demo]                 show every backend: routes, pings, harm and repair (default)
       twill-lab shell [--backend B]    build one network and open a shell in it
                                        (B: vxlan, host-gw, vxlan-direct; default vxlan)
       twill-lab --help

TWILL_BIN      the daemon to run (default: `twill` beside this program)
LAB_PATIENCE   how many times longer than usual to wait, for a slow machine (default: 1)
NO_COLOR       no colours";

enum Wish {
    Demo,
    Shell(Backend),
    Help,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(why) => {
            eprintln!("twill-lab: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode, String> {
    let wish = wish().map_err(|e| format!("{e}; see twill-lab --help"))?;
    if let Wish::Help = wish {
        println!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    }
    let twill = demo::topology().executable();
    if !Path::exists(&twill) {
        return Err(format!("no daemon at {}: run `cargo build`, or set TWILL_BIN", twill.display()));
    }
    lab::enter::enter()?;
    // The lab fails by panicking; a reader of the demo wants the reason, not the place.
    std::panic::set_hook(Box::new(|panic| eprintln!("twill-lab: {}", panic.payload_as_str().unwrap_or("?"))));
    Ok(match wish {
        Wish::Shell(backend) => shell::run(backend),
        _ => demo::run(),
    })
}

fn wish() -> Result<Wish, lexopt::Error> {
    let mut args = lexopt::Parser::from_env();
    let mut wish = Wish::Demo;
    while let Some(arg) = args.next()? {
        wish = match (arg, wish) {
            (Long("help") | Short('h'), _) => return Ok(Wish::Help),
            (Value(name), Wish::Demo) if name == "demo" => Wish::Demo,
            (Value(name), Wish::Demo) if name == "shell" => Wish::Shell(Backend::Vxlan),
            (Long("backend"), Wish::Shell(_)) => Wish::Shell(args.value()?.parse_with(Backend::named)?),
            (other, _) => return Err(other.unexpected()),
        };
    }
    Ok(wish)
}
