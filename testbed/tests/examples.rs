//! The examples: each runs as its first lines say, against a real mesh, with the environment that the demo writes.

#![expect(clippy::unwrap_used, reason = "a test may end by a panic")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use shared::provider::Provider;
use testbed::{
    nats,
    peal::{Peal, Plan},
};
use tokio::{process::Command, time::timeout};

/// Longer than any example, or the installation of what it needs, takes on a busy machine.
const TIMEOUT: Duration = Duration::from_mins(5);

/// Two regions. Services are in the first; ann lives in the second, with two devices.
async fn mesh() -> Peal {
    let plan = Plan {
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    };
    let peal = Peal::start(plan).await.unwrap();
    let devices = [("apns", "aaaa"), ("fcm", "aaaa-fcm")];
    peal.register("ann", "us", &devices).await.unwrap();
    peal.wait_known("eu", "ann").await.unwrap();
    peal
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn example(path: &str) -> PathBuf {
    workspace().join("examples").join(path)
}

/// Runs a command that must succeed. Returns its standard output.
async fn run(command: &mut Command) -> String {
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(TIMEOUT, running).await.unwrap().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out
}

/// Runs a program as somebody does who has read the demo's environment file.
async fn run_in(peal: &Peal, program: &Path, arguments: &[&Path], variables: &[(&str, &str)]) -> String {
    let mut shell = Command::new("bash");
    shell
        .args(["-c", "source \"$0\" && exec \"$@\""])
        .arg(peal.write_environment().unwrap())
        .arg(program)
        .args(arguments)
        .envs(variables.iter().copied());
    run(&mut shell).await
}

/// Whether there is such a program. Without it an example is skipped, though not in CI.
fn has(program: &str) -> bool {
    let found = std::process::Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    assert!(found || env::var_os("CI").is_none(), "CI has no {program}");
    if !found {
        eprintln!("skipped: there is no {program}");
    }
    found
}

/// The folder in which the packages of an example are installed, once for each version of the file that names them.
async fn installed(language: &str, manifest: &str, install: impl AsyncFnOnce(&Path)) -> PathBuf {
    let tools = workspace().join(".tools");
    fs::create_dir_all(&tools).unwrap();
    let folder = tools.join(format!("example-{language}"));
    let lock = fs::File::create(tools.join(format!("example-{language}.lock"))).unwrap();
    let _lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock))
        .await
        .unwrap()
        .unwrap();
    let wanted = fs::read_to_string(example(manifest)).unwrap();
    let mark = folder.join("installed");
    if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
        return folder;
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir(&folder).unwrap();
    install(&folder).await;
    fs::write(mark, wanted).unwrap();
    folder
}

/// What an example that knows all doors must print.
fn assert_told(peal: &Peal, out: &str) {
    let with = |words: &[&str]| {
        let has_words = |line: &&str| {
            words
                .iter()
                .all(|word| line.split_whitespace().any(|part| part == *word))
        };
        out.lines().filter(has_words).count()
    };
    let found = [
        with(&["http", "accepted"]),
        with(&["publish", "stored", "INTAKE_shop"]),
        with(&["request", "accepted"]),
        with(&["feed", "delivered"]),
        with(&["status", "ann", "apns", "delivered"]),
        with(&["status", "ann", "fcm", "delivered"]),
    ];
    assert_eq!(found, [1, 1, 1, 3, 3, 3], "{out}");
    assert_delivered(peal, 3);
}

/// How many notifications ann's devices got, each once.
fn assert_delivered(peal: &Peal, notifications: u64) {
    for provider in [Provider::Apns, Provider::Fcm] {
        let simulator = peal.simulators.of(provider).unwrap();
        let stats = simulator.stats();
        assert_eq!(
            (stats.delivered, stats.duplicates),
            (notifications, 0),
            "{}",
            simulator.name()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn python() {
    if !has("python3") {
        return;
    }
    let folder = installed("python", "python/requirements.txt", async |folder| {
        run(Command::new("python3").args(["-m", "venv"]).arg(folder)).await;
        let mut pip = Command::new(folder.join("bin/pip"));
        pip.args(["install", "--quiet", "--disable-pip-version-check", "--requirement"])
            .arg(example("python/requirements.txt"));
        run(&mut pip).await;
    })
    .await;
    let peal = mesh().await;
    let program = folder.join("bin/python");
    let out = run_in(&peal, &program, &[&example("python/notify.py")], &[]).await;
    assert_told(&peal, &out);
}

#[tokio::test(flavor = "multi_thread")]
async fn node() {
    if !has("node") || !has("npm") {
        return;
    }
    let folder = installed("node", "node/package.json", async |folder| {
        fs::copy(example("node/package.json"), folder.join("package.json")).unwrap();
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--silent", "--prefix"])
            .arg(folder);
        run(&mut npm).await;
    })
    .await;
    // Node.js looks for packages beside the program.
    let program = folder.join("notify.js");
    fs::copy(example("node/notify.js"), &program).unwrap();
    let peal = mesh().await;
    let out = run_in(&peal, Path::new("node"), &[&program], &[]).await;
    assert_told(&peal, &out);
}

#[tokio::test(flavor = "multi_thread")]
async fn rust() {
    // With testbed, so that dependencies have the features that they have in this test, and are not built again.
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args([
            "build",
            "--quiet",
            "--package",
            "peal-testbed",
            "--package",
            "peal-example",
        ])
        .args(["--bin", "peal-example"])
        .args((!cfg!(debug_assertions)).then_some("--release"))
        .current_dir(workspace());
    run(&mut cargo).await;
    let peal = mesh().await;
    let program = Path::new(env!("CARGO_BIN_EXE_testbed")).with_file_name("peal-example");
    let out = run_in(&peal, &program, &[], &[]).await;
    assert_told(&peal, &out);
}

#[tokio::test(flavor = "multi_thread")]
async fn shell() {
    if !has("curl") {
        return;
    }
    let peal = mesh().await;
    let program = format!("{} peal", env!("CARGO_BIN_EXE_testbed"));
    let out = run_in(&peal, &example("shell/notify.sh"), &[], &[("PEAL", &program)]).await;
    let lines = |start: &str| out.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
    assert_eq!(
        (lines("http     accepted").len(), lines("request  accepted").len()),
        (1, 1),
        "{out}"
    );
    let statuses = lines("status ");
    assert_eq!(statuses.len(), 2, "{out}");
    for status in statuses {
        assert!(status.contains("\"state\":\"done\""), "{status}");
        assert_eq!(
            status.matches("\"state\":\"delivered\",\"attempts\"").count(),
            2,
            "{status}"
        );
    }
    assert_delivered(&peal, 2);
}

/// What the demo's environment file promises besides: every command of `peal` works with it.
#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_with_the_environment_of_the_demo() {
    let peal = mesh().await;
    let program = Path::new(env!("CARGO_BIN_EXE_testbed"));
    for command in [
        &["send", "--to", "ann", "--title", "Hi", "--wait"][..],
        &["verify"],
        &["top", "--once"],
        &["dead", "list"],
    ] {
        let arguments: Vec<&Path> = ["peal"].iter().chain(command).map(Path::new).collect();
        run_in(&peal, program, &arguments, &[]).await;
    }
    assert_delivered(&peal, 1);
}
