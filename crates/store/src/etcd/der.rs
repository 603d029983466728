//! Parts of an X.509 certificate that webpki does not expose: the signed bytes and the extensions. This parser only finds them;
//! webpki has validated the certificate before. Malformed bytes give `None`.

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
/// Tag of the extensions among the fields of a certificate.
const EXTENSIONS: u8 = 0xa3;

/// Tag of the version among the fields of a certificate, which may be absent.
const VERSION: u8 = 0xa0;
/// Place of the public key among the fields of a certificate, not counting the version.
const PUBLIC_KEY: usize = 5;
/// Begin of the object identifiers of RSA keys, 1.2.840.113549.1.1.
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1];

/// Object identifier of the basic constraints, 2.5.29.19.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// Parts of a certificate.
pub(super) struct Certificate<'a> {
    /// Signed bytes, header included.
    pub(super) signed: &'a [u8],
    /// Content of the signature's algorithm identifier.
    pub(super) algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    /// Content of the public key, with its algorithm identifier; empty if there is none.
    key: &'a [u8],
    /// Consecutive extensions.
    extensions: &'a [u8],
}

impl<'a> Certificate<'a> {
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let (SEQUENCE, whole, _) = element(der)? else { return None };
        let (SEQUENCE, fields, rest) = element(whole)? else { return None };
        let signed = whole.get(..whole.len() - rest.len())?;
        let (SEQUENCE, algorithm, rest) = element(rest)? else { return None };
        // The leading 0 means that the last byte has no unused bits.
        let (BIT_STRING, [0, signature @ ..], _) = element(rest)? else { return None };
        let extensions = match elements(fields).find(|(tag, _)| *tag == EXTENSIONS) {
            Some((_, wrapped)) => element(wrapped)?.1,
            None => &[],
        };
        let key = elements(fields).filter(|(tag, _)| *tag != VERSION).nth(PUBLIC_KEY);
        let key = key.map_or(&[][..], |(_, key)| key);
        Some(Self { signed, algorithm, signature, key, extensions })
    }

    /// Returns the length of the public key's modulus in bits, if it is an RSA key.
    pub(super) fn rsa_bits(&self) -> Option<usize> {
        let mut parts = elements(self.key);
        let (_, algorithm) = parts.next()?;
        let (BIT_STRING, [0, key @ ..]) = parts.next()? else { return None };
        let (_, identifier, _) = element(algorithm)?;
        let (_, numbers, _) = element(key).filter(|_| identifier.starts_with(RSA))?;
        let (_, modulus, _) = element(numbers)?;
        let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
        let first = modulus.get(zeros)?;
        Some((modulus.len() - zeros) * 8 - first.leading_zeros() as usize)
    }

    /// Returns true if the certificate may sign others (`CA:TRUE`).
    pub(super) fn is_authority(&self) -> bool {
        let constraints = self.extension(BASIC_CONSTRAINTS).and_then(|content| elements(content).next());
        constraints.is_some_and(|(tag, value)| tag == BOOLEAN && value == [0xff])
    }

    /// Returns the content of the extension with this identifier, without its outer sequence.
    pub(super) fn extension(&self, identifier: &[u8]) -> Option<&'a [u8]> {
        let value = |extension: &'a [u8]| {
            let (_, id, rest) = element(extension)?;
            let value = elements(rest).find(|(tag, _)| *tag == OCTET_STRING)?.1;
            (id == identifier).then(|| element(value).map(|(_, content, _)| content)).flatten()
        };
        elements(self.extensions).find_map(|(_, extension)| value(extension))
    }
}

/// Returns the contents of consecutive elements.
pub(super) fn items(der: &[u8]) -> impl Iterator<Item = &[u8]> {
    elements(der).map(|(_, content)| content)
}

/// Returns tag and content of consecutive elements.
fn elements(mut der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (tag, content, rest) = element(der)?;
        der = rest;
        Some((tag, content))
    })
}

/// Returns tag and content of the first element, and the bytes after it.
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
