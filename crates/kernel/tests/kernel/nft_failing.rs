//! Tests of an unusable nftables, and of a table of ours that another process owns. The facts say so, and nothing
//! counts as gone.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kernel::Kernel;
use lab::Timing::Free;
use plan::State;

use crate::nft_scene::*;
use crate::scene::*;

/// Replaces every nft of this namespace by a script.
fn instead_of_nft(script: &str) {
    let file = lab::enter::work_dir().join("tmp/nft");
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    sh(&format!("chmod +x {0}; mount --bind {0} $(readlink -f $(command -v nft))", file.display()));
}

#[track_caller]
fn unusable(kernel: &mut Kernel) -> String {
    let (seen, facts) = look(kernel);
    assert_eq!(seen, State::default(), "nothing is known, so nothing is called left over");
    facts.no_nft.unwrap().into()
}

#[test]
fn a_missing_nft_is_reported_and_its_return_is_noticed() {
    lab::test(Free, || {
        let wanted = wanted(Wish::default());
        let mut kernel = settled(&wanted);
        // The path of nft is not a regular file any more.
        sh("mount --bind /dev/null $(readlink -f $(command -v nft))");
        let error = complaint(&kernel.apply(&[add(wanted.nft_tables[0].clone())])[0]);
        assert!(error.ends_with("nft: it is not installed"), "{error}");
        kernel.forget_firewall();
        let error = complaint(&kernel.apply(&[delete(wanted.nft_tables[0].clone())])[0]);
        assert!(error.ends_with("there is no nft in PATH: install nftables"), "{error}");
        assert_eq!(unusable(&mut kernel), "there is no nft in PATH: install nftables");
        let (_, facts) = look_again(&mut kernel);
        assert_eq!(facts.tables.len(), 2, "that is known all the same: {facts:?}");
        sh("umount $(readlink -f /usr/sbin/nft)");
        lab::wait_for("it is read without being told", Duration::from_secs(10), || {
            let (seen, facts) = look_again(&mut kernel);
            facts.no_nft.is_none() && seen == wanted
        });
    });
}

#[test]
fn an_old_or_incomplete_or_failing_nft_is_reported() {
    lab::test(Free, || {
        settled(&wanted(Wish::default()));
        for (script, words) in [
            (
                "echo 'nftables v0.9.8 (E.D.S.)'; echo '  json: yes'",
                "nft 0.9.8 is too old: install 1.0.1 or newer",
            ),
            (
                "echo 'nftables v1.0.6 (Lester Gooch #5)'; echo '  json: no'",
                "nft was built without JSON support: install your distribution's nftables package",
            ),
            ("echo 'no such luck' >&2; exit 1", "nft: no such luck"),
            (
                "[ $1 = -V ] && echo 'nftables v1.0.6 (x) json: yes' && exit 0; echo oh no >&2; exit 1",
                "table ip flannel-ipv4 cannot be read: nft: oh no",
            ),
            (
                "[ $1 = -V ] && echo 'nftables v1.0.6 (x) json: yes' && exit 0; echo '{\"nftables\": [{'",
                "table ip flannel-ipv4 cannot be read: nft's output about it cannot be parsed: EOF while parsing",
            ),
        ] {
            instead_of_nft(script);
            let said = unusable(&mut Kernel::open().unwrap());
            assert!(said.starts_with(words), "{said}");
            sh("umount $(readlink -f $(command -v nft))");
        }
    });
}

/// An nft that owns the table until its input ends.
struct Owner(Child);

impl Owner {
    fn of(table: &str) -> Self {
        use std::io::Write;
        let mut nft =
            Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let stdin = nft.stdin.as_mut().unwrap();
        writeln!(stdin, "add table {table} {{ flags owner; }}").unwrap();
        lab::wait_for("the owner has its table", Duration::from_secs(5), || ruleset().contains("owner"));
        Self(nft)
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn a_table_owned_by_another_process_is_reported() {
    lab::test(Free, || {
        let wanted = wanted(Wish::default());
        let mut kernel = Kernel::open().unwrap();
        look(&mut kernel);
        let owner = Owner::of("ip flannel-ipv4");
        let words =
            "another process owns table ip flannel-ipv4, and only the owner may change it: end that process";
        let ops = plan::diff(&wanted, &State::default(), &bounds());
        let error = complaint(&kernel.apply(&ops)[0]);
        assert!(error.contains("Operation not permitted") && error.ends_with(words), "{error}");
        assert_eq!(unusable(&mut kernel), words);
        owner.end();
        round(&mut kernel, &wanted);
    });
}

#[test]
fn a_chain_in_use_by_foreign_rules_is_reported_and_kept() {
    lab::test(Free, || {
        let wanted = wanted(Wish::default());
        sh("nft 'add table ip flannel-ipv4; add chain ip flannel-ipv4 postrtg; add chain ip flannel-ipv4 theirs;
                 add rule ip flannel-ipv4 theirs jump postrtg'");
        let before = ruleset();
        let mut kernel = Kernel::open().unwrap();
        let ops = to_do(&mut kernel, &wanted);
        for outcome in kernel.apply(&ops) {
            let error = complaint(&outcome);
            let words = "rules of other programs in flannel's table use it: find them with `nft list ruleset` and delete \
                         them";
            assert!(error.contains("Device or resource busy") && error.ends_with(words), "{error}");
        }
        assert_eq!(ruleset(), before);
        sh("nft flush chain ip flannel-ipv4 theirs");
        round(&mut kernel, &wanted);
    });
}
