//! TLS to etcd: the client's certificate, and the check of the server's. The rules are those of Go, in which flannel
//! and etcdctl are written. Cryptography and certificate paths are left to the libraries: aws-lc-rs, since ring lacks
//! P-521, and webpki.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, InconsistentKeys,
    OtherError, RootCertStore, SignatureScheme,
};
use webpki::EndEntityCert;

use super::EtcdOptions;
use super::{der, error_text};

pub(super) const HTTP2: &[u8] = b"h2";

/// Object identifiers of extensions and purposes, DER-encoded.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
const ANY_PURPOSE: &[u8] = &[0x55, 0x1d, 0x25, 0];
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
/// Length of the shortest RSA key that the library verifies or signs with, in bits.
const SHORTEST_RSA: usize = 2048;

/// Returns the TLS config. Certificates and keys are read for each connection, since they may be renewed while the daemon runs.
pub(super) fn config(options: &EtcdOptions) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let trusted = trusted(&options.cafile)?;
    let verifier = Verifier::new(trusted, &provider).map_err(|error| match options.cafile.as_os_str() {
        none if none.is_empty() => format!("the system's certificate authorities: {error}"),
        path => format!("{}: {error}", Path::new(path).display()),
    })?;
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let has_identity = !(options.certfile.as_os_str().is_empty() || options.keyfile.as_os_str().is_empty());
    let mut config = if has_identity {
        let identity = identity(&options.certfile, &options.keyfile, &provider)?;
        builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
    } else {
        builder.with_no_client_auth()
    };
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(Arc::new(config))
}

/// Returns the first bytes of a TLS client, to learn a server's reaction.
pub(super) fn hello() -> Option<Vec<u8>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from("etcd").ok()?).ok()?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).ok()?;
    Some(bytes)
}

/// Returns the innermost reason for which a handshake failed.
pub(super) fn refusal(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => why.to_string(),
        Some(why) => why.to_string(),
        None => error.to_string(),
    }
}

fn trusted(cafile: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    if cafile.as_os_str().is_empty() {
        // An unreadable certificate is no reason to ignore the rest.
        return Ok(rustls_native_certs::load_native_certs().certs);
    }
    certificates(cafile)
}

/// Returns all certificates of a PEM file; text between them is ignored.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Err(error) => Err(format!("{}: {error}", path.display())),
        Ok(found) if found.is_empty() => Err(format!(
            "{}: there is no certificate in it. Write one in PEM, which begins with -----BEGIN CERTIFICATE-----",
            path.display()
        )),
        Ok(found) => Ok(found),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Returns the client's certificate and key. The certificate may be of any version: the server decides if it is acceptable.
fn identity(certfile: &Path, keyfile: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let chain = certificates(certfile)?;
    let text = read(keyfile)?;
    let unusable = |why: &dyn fmt::Display| match text.windows(9).any(|part| part == b"ENCRYPTED") {
        true => format!(
            "{0}: the key is encrypted. Write it without a password: openssl pkey -in {0} -out NEW",
            keyfile.display()
        ),
        false => format!("{}: no private key can be read from it: {why}", keyfile.display()),
    };
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| unusable(&error))?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| match short_key(&chain[0]) {
        Some(bits) => error_text::with_advice(format!("{} is {}", keyfile.display(), too_short(bits))),
        None => unusable(&error),
    })?;
    let identity = CertifiedKey::new(chain, key);
    if matches!(identity.keys_match(), Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch))) {
        let (certificate, key) = (certfile.display(), keyfile.display());
        return Err(format!("{key}: the key is not that of the certificate {certificate}"));
    }
    Ok(identity)
}

/// Verifier that accepts what webpki accepts, and two more kinds of certificates, as Go does. The first kind is byte
/// for byte among the trusted ones. The second kind has `CA:TRUE` and was signed by a trusted one.
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(trusted: Vec<CertificateDer<'static>>, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let webpki = webpki.map_err(|_| "no certificate in it can be used".to_owned())?;
        Ok(Self { webpki, trusted, provider: provider.clone() })
    }

    /// Checks a certificate whose issuer webpki did not accept, but whose validity period it did.
    fn check_issuer(
        &self,
        server: &CertificateDer<'_>,
        name: &ServerName<'_>,
    ) -> Result<(), CertificateError> {
        let certificate = EndEntityCert::try_from(server).map_err(|_| CertificateError::BadEncoding)?;
        let parts = der::Certificate::parse(server).ok_or(CertificateError::BadEncoding)?;
        if !(self.trusted.contains(server) || self.is_signed(&certificate, &parts)) {
            return Err(CertificateError::UnknownIssuer);
        }
        let is_for_servers = parts.extension(EXTENDED_KEY_USAGE).is_none_or(|purposes| {
            der::items(purposes).any(|purpose| purpose == SERVER_AUTH || purpose == ANY_PURPOSE)
        });
        if !is_for_servers {
            return Err(CertificateError::InvalidPurpose);
        }
        let named = certificate.verify_is_valid_for_subject_name(name);
        named.map_err(|_| CertificateError::NotValidForName)
    }

    /// Replaces an error about the issuer if a trusted authority of that name has a key that is too short.
    fn explained(&self, server: &CertificateDer<'_>, error: Error) -> Error {
        let is_about_issuer = matches!(
            error,
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
        );
        let Ok(certificate) = EndEntityCert::try_from(server) else { return error };
        let is_issuer = |authority: &&CertificateDer<'static>| {
            EndEntityCert::try_from(*authority)
                .is_ok_and(|authority| authority.subject() == certificate.issuer())
        };
        let bits = self.trusted.iter().filter(is_issuer).find_map(short_key).filter(|_| is_about_issuer);
        bits.map_or(error, |bits| other(format!("its CA has {}", too_short(bits))))
    }

    /// Returns true if one of the trusted authorities signed the certificate. Authorities with name constraints do not count.
    fn is_signed(&self, server: &EndEntityCert<'_>, parts: &der::Certificate<'_>) -> bool {
        let algorithms = self.provider.signature_verification_algorithms.all;
        self.trusted.iter().any(|authority| {
            let is_free = der::Certificate::parse(authority)
                .is_some_and(|parts| parts.is_authority() && parts.extension(NAME_CONSTRAINTS).is_none());
            let Ok(authority) = EndEntityCert::try_from(authority) else { return false };
            let mut fitting = algorithms
                .iter()
                .filter(|algorithm| algorithm.signature_alg_id().as_ref() == parts.algorithm);
            is_free
                && authority.subject() == server.issuer()
                && fitting.any(|algorithm| {
                    authority.verify_signature(*algorithm, parts.signed, parts.signature).is_ok()
                })
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refused = match self.webpki.verify_server_cert(server, intermediates, name, ocsp_response, now) {
            Err(refused) => refused,
            accepted => return accepted,
        };
        // webpki checks the time first, so a certificate that is refused for anything else is valid now.
        match &refused {
            Error::InvalidCertificate(why) if is_about_time_or_name(why) => return Err(refused),
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => {}
            Error::InvalidCertificate(CertificateError::Other(why)) if is_authority_in_use(why) => {}
            _ if self.trusted.contains(server) => {}
            _ => return Err(self.explained(server, refused)),
        }
        match self.check_issuer(server, name) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(CertificateError::BadEncoding) => Err(refused),
            Err(why) => Err(self.explained(server, Error::InvalidCertificate(why))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.webpki.verify_tls12_signature(message, certificate, signature);
        verified.map_err(|error| of_short_key(certificate).unwrap_or(error))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.webpki.verify_tls13_signature(message, certificate, signature);
        verified.map_err(|error| of_short_key(certificate).unwrap_or(error))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Returns the length of a certificate's RSA key in bits, if it is too short.
fn short_key(certificate: &CertificateDer<'_>) -> Option<usize> {
    der::Certificate::parse(certificate)?.rsa_bits().filter(|bits| *bits < SHORTEST_RSA)
}

fn too_short(bits: usize) -> String {
    format!("an RSA key of {bits} bits")
}

/// Returns the error of a server whose RSA key is too short; `None` if it is not.
fn of_short_key(certificate: &CertificateDer<'_>) -> Option<Error> {
    short_key(certificate).map(|bits| other(format!("its certificate has {}", too_short(bits))))
}

/// Returns an error with this text, which [`refusal`] gives back.
fn other(text: String) -> Error {
    let text = Box::<dyn std::error::Error + Send + Sync>::from(text);
    Error::InvalidCertificate(CertificateError::Other(OtherError(text.into())))
}

fn is_about_time_or_name(why: &CertificateError) -> bool {
    matches!(
        why,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. }
    )
}

/// Returns true if webpki refused a CA certificate that a server uses.
fn is_authority_in_use(why: &OtherError) -> bool {
    let why = why.0.downcast_ref::<webpki::Error>();
    matches!(why, Some(webpki::Error::CaUsedAsEndEntity))
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a verifier with {} trusted certificates", self.trusted.len())
    }
}
