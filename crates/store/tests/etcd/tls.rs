//! Tests with certificates and keys of many kinds, made by openssl. Each must be accepted or refused by etcdctl as by this
//! client, since etcdctl is written in Go like flannel.

use std::path::Path;
use std::process::Command;

use store::Etcd;

use crate::{Server, acquire, block_on, claim, patiently};

/// Shell functions that create certificates in the current directory.
const PRELUDE: &str = r#"
set -e
authority() { # NAME
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$1.key" -out "$1.crt" -subj "/CN=$1" -days 30
}
issue() { # NAME ISSUER EXTENSIONS; a key that is there is used
    [ -e "$1.key" ] || openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key"
    openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"
    printf "$3" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 30 -extfile "$1.ext" -out "$1.crt"
}
self() { # NAME OPTIONS: CA:TRUE, as openssl makes it
    name=$1; shift
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$name.key" -out "$name.crt" -subj "/CN=$name" -days 30 "$@"
}
SAN=subjectAltName=IP:127.0.0.1,DNS:localhost
"#;

/// Setup of a server, and the expected result.
#[derive(Clone, Copy)]
struct Case {
    what: &'static str,
    /// Script that creates `server.crt`, `server.key` and `ca.crt`, and with `mutual` also `client.crt` and `client.key`.
    script: &'static str,
    mutual: bool,
    /// Part of the expected error; `None` if the certificate is accepted.
    refused: Option<&'static str>,
    /// True if etcdctl accepts the certificate.
    by_go: bool,
}

fn accepted(what: &'static str, script: &'static str) -> Case {
    Case { what, script, mutual: false, refused: None, by_go: true }
}

fn refused(what: &'static str, words: &'static str, script: &'static str) -> Case {
    Case { what, script, mutual: false, refused: Some(words), by_go: false }
}

/// Returns a case of an RSA key that is too short for this client's library and not for Go's.
fn too_short(what: &'static str, words: &'static str, script: &'static str) -> Case {
    Case { by_go: true, ..refused(what, words, script) }
}

fn mutual(case: Case) -> Case {
    Case { mutual: true, ..case }
}

fn shell(dir: &Path, script: &str) {
    let out =
        Command::new("sh").arg("-c").arg(format!("{PRELUDE}{script}")).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Case {
    fn try_it(&self) {
        let dir = tempfile::tempdir().unwrap();
        shell(dir.path(), self.script);
        let mut args = vec!["--cert-file=server.crt", "--key-file=server.key"];
        if self.mutual {
            args.extend(["--client-cert-auth", "--trusted-ca-file=clients.crt"]);
            if !dir.path().join("clients.crt").exists() {
                std::fs::copy(dir.path().join("ca.crt"), dir.path().join("clients.crt")).unwrap();
            }
        }
        self.ask(&Server::start_in(dir, "https", &args));
    }

    /// Checks that this client and etcdctl both give the expected result.
    fn ask(&self, server: &Server) {
        let path = |name: &str| server.dir.path().join(name);
        let mut options = server.options(vec![server.url()]);
        options.cafile = path("ca.crt");
        let mut ctl = Command::new("etcdctl");
        ctl.env("ETCDCTL_API", "3").args(["--command-timeout=3s", "--dial-timeout=3s", "--endpoints"]);
        ctl.arg(server.url()).arg("--cacert").arg(path("ca.crt"));
        if self.mutual && path("client.crt").exists() {
            (options.certfile, options.keyfile) = (path("client.crt"), path("client.key"));
            ctl.arg("--cert").arg(path("client.crt")).arg("--key").arg(path("client.key"));
        }
        let leases = block_on(async {
            let etcd = Etcd::new(options);
            patiently(async || etcd.leases(&crate::conf()).await).await
        });
        match self.refused {
            None => assert_eq!(leases.map(|leases| leases.len()), Ok(0), "{}", self.what),
            Some(words) => {
                let error = leases.map_or_else(|error| error.to_string(), |_| "accepted".into());
                assert!(error.contains(words), "{}: {error}", self.what);
            }
        }
        let out = ctl.args(["get", "x"]).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.success(), self.by_go, "{}: etcdctl: {said}", self.what);
    }
}

fn all(cases: &[Case]) {
    for case in cases {
        case.try_it();
    }
}

#[test]
fn server_certificates_that_go_accepts_are_accepted() {
    all(&[
        accepted("self-signed with CA:TRUE, and itself the CA", "self server -addext $SAN; cp server.crt ca.crt"),
        accepted(
            "the same among other certificates, with text around and CRLF",
            "self server -addext $SAN; authority other; { echo Some text; cat other.crt; echo; cat server.crt; } |
             sed 's/$/\\r/' > ca.crt",
        ),
        accepted(
            "CA:TRUE, issued by a CA",
            "authority ca; issue server ca \"basicConstraints=critical,CA:TRUE\\n$SAN\\nextendedKeyUsage=serverAuth\"",
        ),
        accepted(
            "pinned, and issued by a CA that is not there",
            "authority away; issue server away \"basicConstraints=CA:FALSE\\n$SAN\"; cp server.crt ca.crt",
        ),
        accepted(
            "pinned, and signed by itself with SHA-1",
            "openssl genrsa -out server.key 2048; openssl req -new -key server.key -subj /CN=server -out s.csr;
             printf \"basicConstraints=critical,CA:FALSE\\n$SAN\" > s.ext;
             openssl x509 -req -sha1 -in s.csr -signkey server.key -days 30 -extfile s.ext -out server.crt; cp server.crt ca.crt",
        ),
        accepted(
            "a chain with an intermediate that the server sends",
            "authority ca; issue middle ca 'basicConstraints=critical,CA:TRUE'; issue leaf middle \"$SAN\";
             cat leaf.crt middle.crt > server.crt; cp leaf.key server.key",
        ),
        accepted(
            "an intermediate that is trusted by itself",
            "authority root; issue ca root 'basicConstraints=critical,CA:TRUE'; issue server ca \"$SAN\"",
        ),
        accepted(
            "a CA of X.509 version 1",
            "openssl ecparam -genkey -name prime256v1 -noout -out ca.key; openssl req -new -key ca.key -subj /CN=ca -out ca.csr;
             openssl x509 -req -in ca.csr -signkey ca.key -days 30 -out ca.crt; issue server ca \"$SAN\"",
        ),
    ]);
}

#[test]
fn keys_of_all_kinds_are_accepted() {
    all(&[
        accepted(
            "P-521, CA and server",
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-521 -sha512 -nodes -keyout ca.key -out ca.crt -subj /CN=ca;
             openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out server.key; issue server ca \"$SAN\"",
        ),
        accepted(
            "P-384",
            "authority ca; openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out server.key; issue server ca \"$SAN\"",
        ),
        accepted(
            "Ed25519",
            "authority ca; openssl genpkey -algorithm ED25519 -out server.key; issue server ca \"$SAN\"",
        ),
        accepted(
            "RSA, signed with RSA-PSS",
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -subj /CN=ca;
             openssl genrsa -out server.key 2048; openssl req -new -key server.key -subj /CN=server -out s.csr; echo $SAN > s.ext;
             openssl x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile s.ext -out server.crt \
             -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest",
        ),
    ]);
}

/// A server with a P-521 certificate that etcd made itself is accepted.
#[test]
fn a_server_with_auto_tls_is_accepted() {
    let server = Server::start_in(tempfile::tempdir().unwrap(), "https", &["--auto-tls"]);
    std::fs::copy(server.dir.path().join("data/fixtures/client/cert.pem"), server.dir.path().join("ca.crt"))
        .unwrap();
    accepted("--auto-tls", "").ask(&server);
}

const SERVER: &str = "authority ca; issue server ca \"$SAN\";";

#[test]
fn client_certificates_that_go_uses_are_used() {
    let make = |client: &'static str| -> &'static str { format!("{SERVER}{client}").leak() };
    let with = |what, client| mutual(accepted(what, make(client)));
    all(&[
        with(
            "X.509 version 1",
            "openssl ecparam -genkey -name prime256v1 -noout -out client.key;
             openssl req -new -key client.key -subj /CN=client -out c.csr;
             openssl x509 -req -in c.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out client.crt;
             openssl x509 -in client.crt -noout -text | grep -q 'Version: 1'",
        ),
        with(
            "RSA, its key in PKCS#1",
            "openssl genrsa -traditional -out client.key 2048; grep -q 'BEGIN RSA PRIVATE' client.key;
             issue client ca extendedKeyUsage=clientAuth",
        ),
        with(
            "its key in SEC1, behind its parameters",
            "openssl ecparam -genkey -name prime256v1 -out client.key; grep -q 'BEGIN EC PRIVATE' client.key;
             grep -q 'BEGIN EC PARAMETERS' client.key; issue client ca extendedKeyUsage=clientAuth",
        ),
        with(
            "P-521 in PKCS#8, with CRLF",
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out client.key;
             issue client ca extendedKeyUsage=clientAuth; sed -i 's/$/\\r/' client.key client.crt",
        ),
        with(
            "CA:TRUE, certificate and key in one file",
            "issue client ca 'basicConstraints=critical,CA:TRUE'; cat client.key >> client.crt; cp client.crt client.key",
        ),
    ]);
}

#[test]
fn refused_certificates_are_reported_with_a_remedy() {
    all(&[
        refused(
            "no subjectAltName",
            "subjectAltName",
            "authority ca; issue server ca basicConstraints=CA:FALSE",
        ),
        refused(
            "a name of another host",
            "subjectAltName",
            "authority ca; issue server ca subjectAltName=IP:192.0.2.1,DNS:etcd",
        ),
        refused(
            "pinned, with the name of another host",
            "subjectAltName",
            "self server -addext subjectAltName=IP:192.0.2.1; cp server.crt ca.crt",
        ),
        refused(
            "expired",
            "Renew its certificate",
            "authority ca; faketime '2020-01-01' sh -c 'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
             -keyout server.key -out server.crt -subj /CN=s -days 30 -addext subjectAltName=IP:127.0.0.1'; cp server.crt ca.crt",
        ),
        refused(
            "not yet valid",
            "Correct this node's clock",
            "authority ca; faketime '+3 days' sh -c 'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
             -keyout server.key -out server.crt -subj /CN=s -days 30 -addext subjectAltName=IP:127.0.0.1'; cp server.crt ca.crt",
        ),
        refused(
            "for clients only",
            "serverAuth",
            "authority ca; issue server ca \"$SAN\\nextendedKeyUsage=clientAuth\"",
        ),
        refused(
            "pinned, CA:TRUE, for clients only",
            "serverAuth",
            "self server -addext $SAN -addext extendedKeyUsage=clientAuth; cp server.crt ca.crt",
        ),
        refused("of another CA", "--etcd-cafile", "authority away; issue server away \"$SAN\"; authority ca"),
        refused(
            "CA:TRUE, of another CA of the same name",
            "--etcd-cafile",
            "authority ca; issue server ca \"basicConstraints=critical,CA:TRUE\\n$SAN\"; authority ca",
        ),
        refused(
            "signed by a server's certificate",
            "--etcd-cafile",
            "authority root; issue ca root \"basicConstraints=critical,CA:FALSE\\n$SAN\";
             issue server ca \"basicConstraints=critical,CA:TRUE\\n$SAN\"",
        ),
        refused(
            "no PEM",
            "-----BEGIN CERTIFICATE-----",
            "authority ca; issue server ca \"$SAN\"; echo > ca.crt",
        ),
    ]);
}

#[test]
fn an_rsa_key_that_is_too_short_is_reported_with_its_length() {
    all(&[
        too_short(
            "pinned",
            "its certificate has an RSA key of 1024 bits. Make a key of RSA 2048",
            "openssl genrsa -out server.key 1024; openssl req -new -key server.key -subj /CN=server -out s.csr;
             printf \"basicConstraints=critical,CA:FALSE\\n$SAN\" > s.ext;
             openssl x509 -req -in s.csr -signkey server.key -days 30 -extfile s.ext -out server.crt; cp server.crt ca.crt",
        ),
        too_short(
            "of a CA",
            "its certificate has an RSA key of 1024 bits. Make a key of RSA 2048",
            "authority ca; openssl genrsa -out server.key 1024; issue server ca \"$SAN\"",
        ),
        too_short(
            "the CA's",
            "its CA has an RSA key of 1024 bits. Make a key of RSA 2048",
            "openssl req -x509 -newkey rsa:1024 -nodes -keyout ca.key -out ca.crt -subj /CN=ca -days 30; issue server ca \"$SAN\"",
        ),
        mutual(too_short(
            "the client's",
            "client.key is an RSA key of 1024 bits. Make a key of RSA 2048",
            "authority ca; issue server ca \"$SAN\"; openssl genrsa -out client.key 1024;
             issue client ca extendedKeyUsage=clientAuth",
        )),
    ]);
}

#[test]
fn a_wrong_client_certificate_is_reported() {
    let make = |client: &'static str| -> &'static str { format!("{SERVER}{client}").leak() };
    let with = |what, words, client| mutual(refused(what, words, make(client)));
    all(&[
        with("none is given", "--etcd-certfile", ""),
        with("of another CA", "--trusted-ca-file", "authority b; issue client b extendedKeyUsage=clientAuth"),
        with(
            "an encrypted key",
            "openssl pkey",
            "issue client ca extendedKeyUsage=clientAuth; openssl pkey -aes256 -passout pass:x -in client.key -out k; mv k client.key",
        ),
        with(
            "the key of another certificate",
            "is not that of the certificate",
            "issue client ca extendedKeyUsage=clientAuth; openssl genpkey -algorithm ED25519 -out client.key",
        ),
    ]);
}

/// A renewed CA file is used without a restart.
#[test]
fn a_pinned_certificate_that_changes_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), "self server -addext $SAN; self other -addext $SAN; cp other.crt ca.crt");
    let server = Server::start_in(dir, "https", &["--cert-file=server.crt", "--key-file=server.key"]);
    let mut options = server.options(vec![server.url()]);
    options.cafile = server.dir.path().join("ca.crt");
    block_on(async {
        let etcd = Etcd::new(options);
        let acquired =
            patiently(async || etcd.acquire(&claim(1, store::AcceptableSubnet::Any { dice: 0 })).await).await;
        let error = acquired.unwrap_err().to_string();
        assert!(error.contains("--etcd-cafile"), "{error}");
        shell(server.dir.path(), "cp server.crt ca.crt");
        acquire(&etcd, 1, 0).await;
    });
}
