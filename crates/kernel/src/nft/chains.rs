//! Reads base chains and rules of any table of nf_tables by nfnetlink, and looks up elements of sets. Numbers are those
//! of `linux/netfilter/nf_tables.h`.

use super::netlink::{SUBSYSTEM, TABLE, attributes, nested};
use crate::error::Cause;
use crate::message::{Attribute, Message, Part};
use crate::socket::Netlink;
use crate::walk::Verdict;

const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENTS: u16 = 13;

const NESTED: u16 = 0x8000;

/// A base chain, which packets enter at a hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Base {
    /// Protocol family, `NFPROTO_*`.
    pub(super) family: u8,
    pub(super) table: Box<str>,
    pub(super) name: Box<str>,
    pub(super) hook: u32,
    pub(super) priority: i32,
    /// Devices that the chain is bound to; empty for a chain of all devices.
    pub(super) devices: Vec<Box<str>>,
    /// True if the policy is drop.
    pub(super) drops: bool,
}

/// A rule of nf_tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) handle: u64,
    pub(super) expressions: Vec<Expression>,
    pub(super) has_comment: bool,
}

/// An expression of a rule: its name, and its attributes as received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expression {
    pub(super) name: Box<str>,
    data: Vec<u8>,
}

impl Expression {
    /// An expression with attributes of 32 bits.
    #[cfg(test)]
    pub(super) fn of(name: &str, numbers: &[(u16, u32)]) -> Self {
        let attribute = |(kind, number): &(u16, u32)| {
            [&8_u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &number.to_be_bytes()].concat()
        };
        Self { name: name.into(), data: numbers.iter().flat_map(attribute).collect() }
    }

    pub(super) fn attribute(&self, kind: u16) -> Option<Attribute<'_>> {
        crate::message::Body(&self.data).attributes(0).find(|attribute| attribute.kind == kind)
    }

    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        self.attribute(kind).map(Attribute::be32)
    }

    pub(super) fn text(&self, kind: u16) -> &str {
        self.attribute(kind).map_or("", |attribute| attribute.text())
    }

    /// Returns `NFTA_DATA_VALUE` inside that attribute.
    pub(super) fn value(&self, kind: u16) -> Option<&[u8]> {
        Some(nested(self.attribute(kind)?, 1)?.value.0)
    }

    /// Returns `NFTA_DATA_VERDICT` inside that attribute.
    pub(super) fn verdict(&self, kind: u16) -> Option<Verdict> {
        verdict(self.attribute(kind)?)
    }
}

/// Returns all base chains of all tables.
pub(super) fn bases(netlink: &mut Netlink) -> Result<Vec<Base>, Cause> {
    let request = Message::new(SUBSYSTEM << 8 | GET_CHAIN, libc::NLM_F_DUMP, &[&[0; 4]]);
    netlink.dump(request, |all: &mut Vec<_>, part| all.extend(base(part)))
}

fn base(part: Part<'_>) -> Option<Base> {
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const POLICY: u16 = 5;
    let mut base = Base { family: part.body.u8(0), ..Base::default() };
    let mut hook = None;
    for attribute in attributes(part) {
        match attribute.kind {
            TABLE => base.table = attribute.text().into(),
            NAME => base.name = attribute.text().into(),
            HOOK => hook = Some(attribute),
            POLICY => base.drops = attribute.be32() == 0,
            _ => {}
        }
    }
    for attribute in hook?.nested() {
        match attribute.kind {
            1 => base.hook = attribute.be32(),
            2 => base.priority = attribute.be32() as i32,
            3 => base.devices.push(attribute.text().into()),
            4 => base.devices.extend(attribute.nested().map(|device| device.text().into())),
            _ => {}
        }
    }
    base.devices.dedup();
    Some(base)
}

/// Returns the rules of one chain, in order; empty if the chain is gone.
pub(super) fn rules(netlink: &mut Netlink, family: u8, table: &str, chain: &str) -> Result<Vec<Rule>, Cause> {
    const CHAIN: u16 = 2;
    let mut request = Message::new(SUBSYSTEM << 8 | GET_RULE, libc::NLM_F_DUMP, &[&[family, 0, 0, 0]]);
    request.text(TABLE, table).text(CHAIN, chain);
    let ours = |part: Part<'_>| {
        let has = |kind, name| attributes(part).any(|found| found.kind == kind && found.text() == name);
        has(TABLE, table) && has(CHAIN, chain)
    };
    let dump = netlink.dump(request, |all: &mut Vec<_>, part| all.extend(ours(part).then(|| rule(part))));
    match dump {
        Err(Cause::Refused { errno: libc::ENOENT, .. }) => Ok(Vec::new()),
        other => other,
    }
}

fn rule(part: Part<'_>) -> Rule {
    const HANDLE: u16 = 3;
    const EXPRESSIONS: u16 = 4;
    const USER_DATA: u16 = 7;
    let mut rule = Rule::default();
    for attribute in attributes(part) {
        match attribute.kind {
            HANDLE => rule.handle = attribute.be64(),
            EXPRESSIONS => rule.expressions = attribute.nested().map(expression).collect(),
            USER_DATA => rule.has_comment = true,
            _ => {}
        }
    }
    rule
}

fn expression(expression: Attribute<'_>) -> Expression {
    let name = nested(expression, 1).map_or("", |name| name.text()).into();
    Expression { name, data: nested(expression, 2).map(|data| data.value.0.to_vec()).unwrap_or_default() }
}

/// Returns the length in bytes of a key of that set; `None` if there is no such set.
pub(super) fn key_length(
    netlink: &mut Netlink,
    family: u8,
    table: &str,
    set: &str,
) -> Result<Option<u32>, Cause> {
    let mut request = Message::new(SUBSYSTEM << 8 | GET_SET, 0, &[&[family, 0, 0, 0]]);
    request.text(TABLE, table).text(2, set);
    let mut length = None;
    let ask = netlink.ask(&mut request, |part| {
        length = attributes(part).find(|attribute| attribute.kind == 5).map(Attribute::be32);
    });
    absent(ask.map(|_| length))
}

/// Content of an element beside its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Plain,
    Leads(Verdict),
    Holds(Vec<u8>),
}

/// Returns the element that matches a key, also by an interval or as the catch-all element. `None` if nothing matches.
pub(super) fn element(
    netlink: &mut Netlink,
    family: u8,
    table: &str,
    set: &str,
    key: &[u8],
) -> Result<Option<Element>, Cause> {
    const CATCH_ALL: u32 = 2;
    let ask = |netlink: &mut Netlink, fill: &dyn Fn(&mut Message)| {
        let mut request = Message::new(SUBSYSTEM << 8 | GET_ELEMENTS, 0, &[&[family, 0, 0, 0]]);
        request.text(TABLE, table).text(2, set);
        request.nest(NESTED | 3, |list| _ = list.nest(NESTED | 1, |element| fill(element)));
        let mut found = None;
        let ask = netlink.ask(&mut request, |part| {
            let list = attributes(part).find(|attribute| attribute.kind == 3);
            found = list.and_then(|list| list.nested().next()).map(meaning);
        });
        absent(ask.map(|_| found))
    };
    let by_key = |element: &mut Message| _ = element.nest(NESTED | 1, |value| _ = value.put(1, key));
    if let Some(found) = ask(netlink, &by_key)? {
        return Ok(Some(found));
    }
    // Older kernels have no catch-all element and refuse the request.
    let rest = ask(netlink, &|element: &mut Message| _ = element.put(3, &CATCH_ALL.to_be_bytes()));
    Ok(rest.unwrap_or_default())
}

fn meaning(element: Attribute<'_>) -> Element {
    let Some(data) = nested(element, 2) else { return Element::Plain };
    match (verdict(data), nested(data, 1)) {
        (Some(verdict), _) => Element::Leads(verdict),
        (None, Some(value)) => Element::Holds(value.value.0.to_vec()),
        (None, None) => Element::Plain,
    }
}

/// Decodes the verdict in an attribute that holds a verdict or a value.
fn verdict(data: Attribute<'_>) -> Option<Verdict> {
    let verdict = nested(data, 2)?;
    let chain = || nested(verdict, 2).map_or("", |chain| chain.text()).into();
    Some(match nested(verdict, 1)?.be32() as i32 {
        0 => Verdict::Refuse,
        1 => Verdict::Accept,
        -1 => Verdict::Continue,
        -3 => Verdict::Jump(chain()),
        -4 => Verdict::Goto(chain()),
        -2 | -5 => Verdict::Return,
        _ => Verdict::Stop,
    })
}

fn absent<A>(answer: Result<Option<A>, Cause>) -> Result<Option<A>, Cause> {
    match answer {
        Err(Cause::Refused { errno: libc::ENOENT, .. }) => Ok(None),
        other => other,
    }
}

/// A message as a base chain, a rule and the elements of a set.
#[cfg(fuzzing)]
pub(super) fn fuzz(part: Part<'_>) -> (Option<Base>, Rule, Vec<Element>) {
    let lists = attributes(part).filter(|attribute| attribute.kind == 3);
    (base(part), rule(part), lists.flat_map(Attribute::nested).map(meaning).collect())
}
