//! The parts of an X.509 certificate that webpki keeps to itself: what was signed, and its extensions. It only finds them;
//! whether the certificate is in order webpki has decided before. Malformed bytes give `None`.

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
/// The tag of the extensions among the fields of a certificate.
const EXTENSIONS: u8 = 0xa3;

const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// A certificate in its parts.
pub(super) struct Certificate<'a> {
    /// The bytes that the signature is of, header included.
    pub(super) signed: &'a [u8],
    /// The content of the signature's algorithm identifier.
    pub(super) algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    /// The extensions, one after the other.
    extensions: &'a [u8],
}

impl<'a> Certificate<'a> {
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let (SEQUENCE, whole, _) = element(der)? else { return None };
        let (SEQUENCE, fields, rest) = element(whole)? else { return None };
        let signed = whole.get(..whole.len() - rest.len())?;
        let (SEQUENCE, algorithm, rest) = element(rest)? else { return None };
        // No unused bits in the last byte.
        let (BIT_STRING, [0, signature @ ..], _) = element(rest)? else { return None };
        let extensions = match elements(fields).find(|(tag, _)| *tag == EXTENSIONS) {
            Some((_, wrapped)) => element(wrapped)?.1,
            None => &[],
        };
        Some(Self { signed, algorithm, signature, extensions })
    }

    /// True if it may sign certificates: `CA:TRUE`.
    pub(super) fn is_authority(&self) -> bool {
        let constraints = self.extension(BASIC_CONSTRAINTS).and_then(|content| elements(content).next());
        constraints.is_some_and(|(tag, value)| tag == BOOLEAN && value == [0xff])
    }

    /// The content of the extension of that identifier, without its outer sequence.
    pub(super) fn extension(&self, identifier: &[u8]) -> Option<&'a [u8]> {
        let value = |extension: &'a [u8]| {
            let (_, id, rest) = element(extension)?;
            let value = elements(rest).find(|(tag, _)| *tag == OCTET_STRING)?.1;
            (id == identifier).then(|| element(value).map(|(_, content, _)| content)).flatten()
        };
        elements(self.extensions).find_map(|(_, extension)| value(extension))
    }
}

/// The contents of the elements that stand one after the other.
pub(super) fn items(der: &[u8]) -> impl Iterator<Item = &[u8]> {
    elements(der).map(|(_, content)| content)
}

fn elements(mut der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (tag, content, rest) = element(der)?;
        der = rest;
        Some((tag, content))
    })
}

/// Tag, content and what follows of the first element.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, length, rest @ ..] = der else { return None };
    let (length, rest) = match length {
        short @ 0..=0x7f => (usize::from(*short), rest),
        long @ (0x81..=0x84) => {
            let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}
