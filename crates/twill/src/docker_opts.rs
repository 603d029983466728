//! `twill docker-opts`: turns the subnet file into options for Docker's daemon, to the byte as flannel's
//! mk-docker-opts.sh does (flannel-compat 8.5). The file is written whole or not at all.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use ipnet::IpNet;
use kernel::Kernel;
use plan::env_file;

use crate::files::{self, Readers};
use crate::flags::DockerOptsFlags;

/// Prefix of the variables that hold Docker's options.
const PREFIX: &str = "DOCKER_OPT_";

/// Variables in the order of their names.
type Variables = BTreeMap<String, String>;

/// Runs the command. Returns an error if the subnet file cannot be read or the options file cannot be written. A subnet
/// that is another node's is an error, too.
pub(crate) fn run(flags: &DockerOptsFlags) -> anyhow::Result<()> {
    let path = flags.subnet_file.display();
    let text = files::read_to_string(&flags.subnet_file)
        .with_context(|| format!("{path} cannot be read; the daemon writes it once it has a subnet"))?;
    let own = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let own = own.filter_map(|(name, value)| Some((name, value.into_string().ok()?)));
    let mut variables: Variables = own.collect();
    for line in env_file::parse(&text) {
        let (name, value) =
            line.assignment.map_err(|why| anyhow::anyhow!("{path}:{}: {why}", line.number))?;
        variables.insert(name, value);
    }
    refuse_foreign_route(&variables)?;
    write(&flags.docker_file, &options(variables, flags)?)
        .with_context(|| format!("{} cannot be written", flags.docker_file.display()))
}

/// Returns the text of the options file. Returns an error if `FLANNEL_IPMASQ` is neither true nor false.
fn options(mut variables: Variables, flags: &DockerOptsFlags) -> anyhow::Result<String> {
    let value_of = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    let mut ours = Vec::from([
        ("BIP", value_of("FLANNEL_SUBNET").map(|subnet| format!("--bip={subnet}"))),
        ("MTU", value_of("FLANNEL_MTU").map(|mtu| format!("--mtu={mtu}"))),
    ]);
    if flags.ip_masq {
        // Either flannel masquerades or Docker does.
        let docker_masquerades = match value_of("FLANNEL_IPMASQ").map(String::as_str) {
            None => None,
            Some("true") => Some("--ip-masq=false".into()),
            Some("false") => Some("--ip-masq=true".into()),
            Some(other) => bail!("FLANNEL_IPMASQ is {other:?}, and must be true or false"),
        };
        ours.push(("IPMASQ", docker_masquerades));
    }
    let mut combined = value_of(&flags.key).map_or(String::new(), |before| format!("{before} "));
    for (name, option) in ours {
        variables.extend(option.map(|option| (format!("{PREFIX}{name}"), option)));
    }
    let (mut text, both) = (String::new(), flags.each == flags.combined);
    for (name, option) in variables.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        if flags.each || both {
            let _ = writeln!(text, "{name}=\"{option}\"");
        }
        let _ = write!(combined, " {option}");
    }
    if flags.combined || both {
        let _ = writeln!(text, "{}=\"{combined}\"", flags.key);
    }
    Ok(text)
}

/// Returns an error if a route to our subnet leads through another node. The subnet is that node's then, and Docker must
/// not use it.
fn refuse_foreign_route(variables: &Variables) -> anyhow::Result<()> {
    let Some(subnet) = variables.get("FLANNEL_SUBNET").and_then(|subnet| subnet.parse::<IpNet>().ok()) else {
        return Ok(());
    };
    let routes = Kernel::open()?.underlay(&[])?.routes;
    match routes.iter().find(|route| route.destination == subnet.trunc()) {
        Some(route) if let Some(gateway) = route.gateway => {
            bail!("your routing table already contains the subnet: {} via {gateway}", route.destination)
        }
        _ => Ok(()),
    }
}

/// Writes the file. Anything but a regular file, such as /dev/stdout or a link, is written to and not replaced. In a
/// directory where others may write, that is an error.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => {
            let dir = files::dir_of(path);
            if !files::is_private(dir) {
                let why = format!("it is no regular file, and others may write in {}", dir.display());
                return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, why));
            }
            fs::write(path, text)
        }
        _ => files::write(path, text, Readers::Everyone).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> DockerOptsFlags {
        let args: Vec<&str> = line.split_whitespace().collect();
        let has = |flag| args.contains(&flag);
        DockerOptsFlags {
            subnet_file: "/nonexistent".into(),
            docker_file: "/nonexistent".into(),
            each: has("-i"),
            combined: has("-c"),
            ip_masq: !has("-m"),
            key: args.iter().skip_while(|arg| **arg != "-k").nth(1).unwrap_or(&"DOCKER_OPTS").to_string(),
        }
    }

    fn variables(text: &str) -> Variables {
        env_file::parse(text).map(|line| line.assignment.unwrap()).collect()
    }

    const PLAIN: &str =
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

    /// The text is compared with the output of flannel's script for the same input.
    #[test]
    fn the_options_equal_flannels_byte_for_byte() {
        let each = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=true\"\nDOCKER_OPT_MTU=\"--mtu=1472\"\n";
        let all = " --bip=10.1.74.1/24 --ip-masq=true --mtu=1472";
        let masqueraded = PLAIN.replace("false", "true");
        let (more, before) =
            (format!("{PLAIN}DOCKER_OPT_LOG=--log-level=warn\n"), format!("{PLAIN}DOCKER_OPTS=-D\n"));
        for (text, line, expected) in [
            (PLAIN, "", format!("{each}DOCKER_OPTS=\"{all}\"\n")),
            (PLAIN, "-i -c", format!("{each}DOCKER_OPTS=\"{all}\"\n")),
            (PLAIN, "-i", each.into()),
            (PLAIN, "-c", format!("DOCKER_OPTS=\"{all}\"\n")),
            (PLAIN, "-c -k OPTIONS", format!("OPTIONS=\"{all}\"\n")),
            (PLAIN, "-c -m", "DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n".into()),
            (&masqueraded, "-c", "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=false --mtu=1472\"\n".into()),
            (&before, "-c", format!("DOCKER_OPTS=\"-D {all}\"\n")),
            (
                &more,
                "-c",
                "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --log-level=warn --mtu=1472\"\n".into(),
            ),
            ("FLANNEL_MTU=1450\nFLANNEL_SUBNET=\n", "-i", "DOCKER_OPT_MTU=\"--mtu=1450\"\n".into()),
            ("", "", "DOCKER_OPTS=\"\"\n".into()),
        ] {
            assert_eq!(options(variables(text), &flags(line)).unwrap(), expected, "{line} of {text}");
        }
    }

    #[test]
    fn an_invalid_masquerade_value_is_rejected_unless_omitted() {
        let odd = PLAIN.replace("false", "maybe");
        assert!(options(variables(&odd), &flags("")).unwrap_err().to_string().contains("FLANNEL_IPMASQ"));
        assert!(options(variables(&odd), &flags("-m")).is_ok());
    }

    #[test]
    fn a_device_or_a_link_is_written_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, "A=1\n").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "A=1\n");
    }
}
