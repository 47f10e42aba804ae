//! The operator under test: a child process out of the cluster, that can be killed at any moment.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use kube::config::Kubeconfig;
use testkit::kubernetes;

use super::wait;

/// Who the operator of a namespace is in the audit log.
pub fn user(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:dialog-operator")
}

/// A kubeconfig with which one is the ServiceAccount of an operator in this namespace, and the rights that the chart
/// gives that account.
pub fn kubeconfig(directory: &Path, namespace: &str) -> PathBuf {
    let helm = kubernetes::tool_path("helm");
    let chart = testkit::repository("charts/dialog-operator");
    let rights = testkit::run(
        Command::new(helm)
            .args(["template", "dialog-operator"])
            .arg(chart)
            .args(["--namespace", namespace, "--set", &format!("watchNamespaces={{{namespace}}}")])
            .args(["--show-only", "templates/rbac.yaml"]),
    );
    let file = directory.join("rights.yaml");
    std::fs::write(&file, rights).unwrap();
    testkit::run(kubernetes::tool("kubectl").args(["apply", "-f"]).arg(file));

    let mut config = Kubeconfig::read_from(kubernetes::kubeconfig()).unwrap();
    for user_info in &mut config.auth_infos {
        user_info.auth_info.get_or_insert_default().impersonate = Some(user(namespace));
    }
    let file = directory.join("kubeconfig");
    // JSON is YAML.
    std::fs::write(&file, serde_json::to_string(&config).unwrap()).unwrap();
    file
}

/// A running operator. It is killed when this is dropped.
pub struct Operator {
    child: Child,
    pub log: PathBuf,
}

impl Operator {
    pub(super) fn start(
        kubeconfig: &Path,
        namespace: &str,
        log: PathBuf,
        arguments: &[&str],
        clock: Option<&str>,
    ) -> Self {
        let file = File::create(&log).unwrap();
        // How long something takes is measured by the monotonic clock, which nobody sets.
        let library = "/usr/$LIB/faketime/libfaketimeMT.so.1";
        let another =
            |shift| [("LD_PRELOAD", library), ("FAKETIME", shift), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        let child = Command::new(env!("CARGO_BIN_EXE_dialog-operator"))
            .args(["run", "--log-format", "text", "--log", "info,dialog_operator=debug"])
            .args(["--namespaces", namespace, "--lease-namespace", namespace, "--listen", "127.0.0.1:0"])
            .args(if arguments.contains(&"--default-image") {
                Vec::new()
            } else {
                vec!["--default-image".to_owned(), super::image()]
            })
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .env("NO_COLOR", "1")
            .envs(clock.map(another).into_iter().flatten())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// Waits until it holds the Lease.
    pub async fn until_it_leads(&self) {
        wait::eventually("the operator leads", Duration::from_secs(30), async || {
            if self.leads() { Ok(()) } else { Err(self.logged()) }
        })
        .await;
    }

    /// Whether it has led at some time.
    pub fn leads(&self) -> bool {
        self.logged().contains("leadership changed")
    }

    /// Waits until it has begun, and stands by.
    pub async fn until_it_waits(&self) {
        wait::eventually("the operator stands by", Duration::from_secs(30), async || {
            if self.logged().contains("starting") { Ok(()) } else { Err(self.logged()) }
        })
        .await;
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: no last word.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(mut self) -> ExitStatus {
        testkit::kill("-TERM", &self.child.id().to_string());
        wait::eventually("the operator ends after SIGTERM", Duration::from_secs(12), async || {
            self.child.try_wait().unwrap().ok_or("it runs")
        })
        .await
    }

    /// What it has logged so far.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
