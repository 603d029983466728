//! Firewall rules: the options, the available tools, and the rules that exist before.

use plan::config::FirewallOptions;
use plan::state::{
    IptablesChain, IptablesTable, NftChain, NftChainName, NftElement, NftTable, RuleVerdict, TrafficRule,
    Variant,
};
use plan::underlay::{FirewallFacts, IptablesFacts};
use plan::{Family, Row};

use super::half::unknown;
use super::scene::Scene;
use super::tape::Tape;
use super::world::{World, v4};

pub(crate) fn options(tape: &mut Tape) -> FirewallOptions {
    FirewallOptions {
        nftables: tape.pick(&[None, None, Some(true), Some(false)]),
        masquerade: tape.once_in(2),
        forward: !tape.once_in(3),
        fully_random: tape.once_in(2),
    }
}

pub(crate) fn facts(tape: &mut Tape) -> FirewallFacts {
    let mut facts = FirewallFacts {
        no_nft: tape.once_in(6).then(|| "not installed".into()),
        usual: tape.pick(&[None, Some(Variant::Nft), Some(Variant::Legacy)]),
        ..FirewallFacts::default()
    };
    for variant in Variant::ALL {
        if tape.once_in(4) {
            continue;
        }
        let families = Family::ALL.map(|family| IptablesFacts {
            variant,
            family,
            in_use: tape.once_in(6),
            refuses: tape.once_in(5).then(|| "policy DROP".into()),
        });
        facts.iptables.extend(families);
    }
    facts
}

/// Adds rows as desired, with faults, or left by another manager, and a foreign chain.
pub(crate) fn draw(scene: &mut Scene, tape: &mut Tape, world: &World) {
    if !world.others.firewall.is_us() {
        theirs(scene, tape);
        return;
    }
    Family::ALL.into_iter().filter(|_| !tape.once_in(3)).collect::<Vec<_>>().into_iter().for_each(|family| {
        nft(scene, tape, family);
    });
    for variant in Variant::ALL {
        for (family, table) in Family::ALL.into_iter().zip(IptablesTable::ALL) {
            if tape.once_in(3) {
                iptables(scene, tape, (variant, family, table));
            }
        }
    }
}

/// Adds rules in our names that another daemon keeps.
fn theirs(scene: &mut Scene, tape: &mut Tape) {
    let rows = &mut scene.foreign;
    for family in Family::ALL {
        for table in IptablesTable::ALL {
            if tape.once_in(3) {
                let (variant, chain) = (tape.pick(&Variant::ALL), table.chain().into());
                let rules = ["-j ACCEPT".into()].into();
                rows.iptables.push(IptablesChain { variant, family, table, chain, rules, unknown: None });
            }
        }
        if tape.once_in(2) {
            rows.nft_tables.push(NftTable { family });
            if tape.once_in(3) {
                continue;
            }
            let chain = |chain| NftChain { family, chain, rules: [].into(), unknown: None };
            rows.nft_chains.extend([NftChainName::Forward, NftChainName::Vxlan].map(chain));
            if family == Family::Ipv4 {
                rows.nft_elements.push(NftElement { address: v4([203, 0, 113, 77]) });
            }
        }
    }
}

fn nft(scene: &mut Scene, tape: &mut Tape, family: Family) {
    let foreign = tape.once_in(6);
    if foreign {
        let chain = NftChainName::Other("theirs".into());
        scene.foreign.nft_chains.push(NftChain { family, chain, rules: [].into(), unknown: None });
    }
    let table = NftTable { family };
    if scene.desired.nft_tables.contains(&table) {
        scene.kernel.rows.nft_tables.push(table);
    } else if foreign {
        scene.foreign.nft_tables.push(table);
    } else {
        scene.left_over.nft_tables.push(table);
    }
    for chain in
        [NftChainName::Forward, NftChainName::Postrouting, NftChainName::Vxlan, NftChainName::VxlanPods]
    {
        let stale = NftChain { family, chain, rules: [].into(), unknown: None };
        let want = scene.desired.nft_chains.iter().find(|row| row.cmp_key(&stale).is_eq()).cloned();
        match want {
            _ if tape.once_in(3) => {}
            None => scene.left_over.nft_chains.push(stale),
            Some(row) => {
                if row.chain == NftChainName::Vxlan {
                    elements(scene, tape, family);
                }
                scene.kernel.rows.nft_chains.push(harmed(tape, row));
            }
        }
    }
}

fn harmed(tape: &mut Tape, mut row: NftChain) -> NftChain {
    match tape.below(4) {
        0 => row.rules = row.rules.iter().skip(1).cloned().collect(),
        1 => {
            let theirs = TrafficRule { matches: [].into(), verdict: RuleVerdict::Other("drop".into()) };
            row.rules = row.rules.iter().cloned().chain([theirs]).collect();
        }
        2 => row.unknown = unknown("another hook"),
        _ => {}
    }
    row
}

fn elements(scene: &mut Scene, tape: &mut Tape, family: Family) {
    let of_family = scene.desired.nft_elements.iter().filter(|row| Family::of(row.address) == family);
    scene.kernel.rows.nft_elements.extend(of_family.filter(|_| !tape.once_in(4)).cloned());
    if family == Family::Ipv4 && tape.once_in(2) {
        scene.left_over.nft_elements.push(NftElement { address: v4([203, 0, 113, 77]) });
    }
}

fn iptables(scene: &mut Scene, tape: &mut Tape, (variant, family, table): (Variant, Family, IptablesTable)) {
    let jumps = vec![table.jump().into(); 1 + tape.below(2)];
    for (chain, rules) in [(table.chain(), vec!["-j ACCEPT".into()]), (table.hook(), jumps)] {
        let chain = chain.into();
        let row = IptablesChain { variant, family, table, chain, rules: rules.into(), unknown: None };
        let is_desired = scene.desired.iptables.iter().any(|want| want.cmp_key(&row).is_eq());
        if is_desired { &mut scene.kernel.rows } else { &mut scene.left_over }.iptables.push(row);
    }
}
