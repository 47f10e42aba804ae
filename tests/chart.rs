//! The Helm chart: what it renders, what it refuses, and on a real Kubernetes that an uninstall leaves the
//! CustomResourceDefinition and every DialogCluster, and that an upgrade brings a changed CustomResourceDefinition.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use dialog_operator::api;
use serde_json::{Value, json};
use testkit::{
    kubernetes::{InstalledCrd, tool, tool_path, unique},
    repository, run, said,
};

fn chart() -> PathBuf {
    repository("charts/dialog-operator")
}

fn template(settings: &[&str]) -> Output {
    let mut helm = Command::new(tool_path("helm"));
    helm.args(["template", "dialogs", "--namespace", "system", "--kube-version", "1.29.0"]).arg(chart());
    for setting in settings {
        helm.args(["--set", setting]);
    }
    helm.output().unwrap()
}

/// Every object that the chart renders with these settings.
fn objects(settings: &[&str]) -> Vec<Value> {
    let output = template(settings);
    assert!(output.status.success(), "{}", said(&output));
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
    objects.into_iter().filter(|object| !object.is_null()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn deployment(settings: &[&str]) -> Value {
    of_kind(&objects(settings), "Deployment")[0].clone()
}

#[test]
fn lint() {
    let output = Command::new(tool_path("helm")).args(["lint", "--strict"]).arg(chart()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_chart_has_the_version_of_the_program() {
    let chart: Value =
        serde_saphyr::from_str(&fs::read_to_string(chart().join("Chart.yaml")).unwrap()).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_dockerfile_makes_the_image_that_is_run_here() {
    let read = |file: &str| fs::read_to_string(repository(file)).unwrap();
    let (dockerfile, here) = (read("Dockerfile"), read("infrastructure/local-kubernetes/lib/operator.sh"));
    for (there, same_here) in [
        ("USER 65532:65532", r#""User":"65532:65532""#),
        (r#"ENTRYPOINT ["/dialog-operator"]"#, r#""Entrypoint":["/dialog-operator"]"#),
    ] {
        assert!(dockerfile.contains(there), "Dockerfile: {there}");
        assert!(here.contains(same_here), "operator.sh: {same_here}");
    }
    // Built by the Rust that the program asks for, on the Debian whose glibc it then finds.
    let rust = format!("rust:{}-bookworm AS build", env!("CARGO_PKG_RUST_VERSION"));
    assert!(dockerfile.contains(&rust), "Dockerfile: {rust}");
    assert!(dockerfile.contains("FROM gcr.io/distroless/cc-debian12:nonroot"));
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for (setting, named) in [
        ("replicaCount=two", "replicaCount"),
        ("replicas=3", "replicas"),
        ("image.name=x", "name"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("defaultPostgresImage=", "defaultPostgresImage"),
        ("clusterDomain=Cluster.Local", "clusterDomain"),
        ("watchNamespaces=shop", "watchNamespaces"),
        ("watchNamespaces={Shop}", "watchNamespaces"),
        ("logFormat=xml", "logFormat"),
        ("crds.keep=false", "keep"),
        ("extraEnv[0].value=x", "extraEnv"),
    ] {
        let output = template(&[setting]);
        assert!(!output.status.success(), "{setting} was accepted");
        assert!(
            said(&output).contains(named),
            "{setting}: the refusal does not say '{named}':\n{}",
            said(&output)
        );
    }
}

#[test]
fn every_value_is_in_the_schema_and_in_the_readme() {
    let values = fs::read_to_string(chart().join("values.yaml")).unwrap();
    let schema: Value =
        serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap();
    let parsed: Value = serde_saphyr::from_str(&values).unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let mut in_schema = names(&schema["properties"]);
    in_schema.remove("global");
    assert_eq!(names(&parsed), in_schema);
    let readme = fs::read_to_string(chart().join("README.md")).unwrap();
    let missing: Vec<_> = in_schema.iter().filter(|name| !readme.contains(&format!("`{name}"))).collect();
    assert!(missing.is_empty(), "the chart's README.md does not mention {missing:?}");
}

/// What the operator may do where its DialogClusters are: API group, resource, verbs.
const RIGHTS: &[(&str, &str, &str)] = &[
    ("dialogcluster.dev", "dialogclusters", "get list watch"),
    ("dialogcluster.dev", "dialogclusters/status", "patch"),
    ("dialogcluster.dev", "dialogclusters/finalizers", "update"),
    ("", "configmaps", "get list watch create patch delete"),
    ("", "persistentvolumeclaims", "get list watch create patch delete"),
    ("", "pods", "get list watch create patch delete"),
    ("", "secrets", "get list watch create patch"),
    ("", "serviceaccounts", "get list watch create patch"),
    ("", "services", "get list watch create patch delete"),
    ("apps", "statefulsets", "get list watch create patch delete"),
    ("policy", "poddisruptionbudgets", "get list watch create patch"),
    ("", "events", "list watch"),
    ("events.k8s.io", "events", "create patch"),
];

/// What it may do in its own namespace.
const LEASE_RIGHTS: &[(&str, &str, &str)] = &[("coordination.k8s.io", "leases", "get create update")];

type Right = (String, String, String);

fn expected(rights: &[(&str, &str, &str)]) -> BTreeSet<Right> {
    let each = |(group, resource, verbs): &(&str, &str, &str)| {
        let (group, resource) = ((*group).to_owned(), (*resource).to_owned());
        verbs
            .split(' ')
            .map(move |verb| (group.clone(), resource.clone(), verb.to_owned()))
            .collect::<Vec<_>>()
    };
    rights.iter().flat_map(each).collect()
}

fn rendered(role: &Value) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    let words = |rule: &Value, key: &str| -> Vec<String> {
        rule[key].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    for rule in role["rules"].as_array().unwrap() {
        let known = ["apiGroups", "resources", "verbs"];
        assert!(rule.as_object().unwrap().keys().all(|key| known.contains(&key.as_str())), "{rule}");
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                for verb in words(rule, "verbs") {
                    rights.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    rights
}

#[test]
fn the_operator_has_these_rights_and_no_others() {
    let everywhere = objects(&[]);
    let roles = of_kind(&everywhere, "ClusterRole");
    assert_eq!(roles.len(), 1);
    assert_eq!(rendered(roles[0]), expected(RIGHTS));
    let own = of_kind(&everywhere, "Role");
    assert_eq!(own.len(), 1);
    assert_eq!(own[0]["metadata"]["namespace"], "system");
    assert_eq!(rendered(own[0]), expected(LEASE_RIGHTS));

    let named = objects(&["watchNamespaces={shop,market}"]);
    assert!(of_kind(&named, "ClusterRole").is_empty() && of_kind(&named, "ClusterRoleBinding").is_empty());
    let roles: Vec<_> = of_kind(&named, "Role")
        .into_iter()
        .map(|role| (role["metadata"]["namespace"].as_str().unwrap(), rendered(role)))
        .collect();
    let there = expected(RIGHTS);
    assert_eq!(roles, [("shop", there.clone()), ("market", there), ("system", expected(LEASE_RIGHTS))]);
}

#[test]
fn every_role_is_bound_to_the_operators_account_alone() {
    for settings in [&[][..], &["watchNamespaces={shop,market}"], &["serviceAccount.name=mine"]] {
        let objects = objects(settings);
        let account = &deployment(settings)["spec"]["template"]["spec"]["serviceAccountName"];
        assert_eq!(of_kind(&objects, "ServiceAccount")[0]["metadata"]["name"], *account);
        let (mut roles, mut bound) = (BTreeSet::new(), BTreeSet::new());
        for object in &objects {
            let (kind, namespace) = (object["kind"].as_str().unwrap(), &object["metadata"]["namespace"]);
            if kind == "Role" || kind == "ClusterRole" {
                roles.insert(format!("{kind} {} {namespace}", object["metadata"]["name"]));
            } else if kind.ends_with("RoleBinding") {
                let subject = json!([{"kind": "ServiceAccount", "name": account, "namespace": "system"}]);
                assert_eq!(object["subjects"], subject);
                let role = &object["roleRef"];
                bound.insert(format!("{} {} {namespace}", role["kind"].as_str().unwrap(), role["name"]));
            }
        }
        assert_eq!(roles, bound);
        assert!(!roles.is_empty());
    }
}

#[test]
fn the_operator_runs_confined_and_knows_where_it_is() {
    let deployment = deployment(&["image.repository=localhost/dialog-operator", "image.tag=dev"]);
    assert_eq!(deployment["spec"]["replicas"], 2);
    let pod = &deployment["spec"]["template"]["spec"];
    let seccomp = json!({"type": "RuntimeDefault"});
    assert_eq!(
        pod["securityContext"],
        json!({"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": seccomp})
    );
    let [container] = pod["containers"].as_array().unwrap().as_slice() else { panic!("{pod}") };
    assert_eq!(
        container["securityContext"],
        json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}
        })
    );
    assert_eq!(container["image"], "localhost/dialog-operator:dev");
    assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/healthz", "port": "http"}));
    assert_eq!(container["readinessProbe"]["httpGet"], json!({"path": "/readyz", "port": "http"}));
    assert_eq!(container["ports"], json!([{"name": "http", "containerPort": 8080}]));
    assert_eq!(container["env"][0]["name"], "POD_NAME");
    assert_eq!(container["env"][1]["valueFrom"]["fieldRef"]["fieldPath"], "metadata.namespace");
}

#[test]
fn values_reach_the_operators_command_line() {
    let args = |settings: &[&str]| {
        let args = &deployment(settings)["spec"]["template"]["spec"]["containers"][0]["args"];
        args.as_array().unwrap().iter().map(|arg| arg.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let default = [
        "run",
        "--default-image=citusdata/citus:14.1.0",
        "--cluster-domain=cluster.local",
        "--lease-namespace=$(POD_NAMESPACE)",
        "--listen=0.0.0.0:8080",
        "--log-format=json",
        "--log=info",
    ];
    assert_eq!(args(&[]), default);
    let changed = args(&[
        "defaultPostgresImage=localhost/dialog-postgres:citus",
        "clusterDomain=example.org",
        "watchNamespaces={shop,market}",
        "logFormat=text",
        "logFilter=debug",
    ]);
    let expected = [
        "run",
        "--default-image=localhost/dialog-postgres:citus",
        "--cluster-domain=example.org",
        "--namespaces=shop,market",
        "--lease-namespace=$(POD_NAMESPACE)",
        "--listen=0.0.0.0:8080",
        "--log-format=text",
        "--log=debug",
    ];
    assert_eq!(changed, expected);
}

#[test]
fn the_operator_understands_its_command_line() {
    let mut operator = Command::new(env!("CARGO_BIN_EXE_dialog-operator"));
    let nothing = tempfile::tempdir().unwrap();
    operator.env_clear().env("HOME", nothing.path());
    let deployment = deployment(&["watchNamespaces={shop,market}"]);
    for arg in deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap() {
        operator.arg(arg.as_str().unwrap().replace("0.0.0.0:8080", "127.0.0.1:0"));
    }
    // Without a Kubernetes it gets as far as looking for one.
    let said = said(&operator.output().unwrap());
    assert!(said.contains("no way to a Kubernetes API"), "{said}");
}

#[test]
fn the_crd_is_the_programs_own_and_is_kept() {
    let objects = objects(&[]);
    let crd = of_kind(&objects, "CustomResourceDefinition")[0];
    let ours = serde_json::to_value(api::crd()).unwrap();
    assert_eq!(crd["spec"], ours["spec"], "run `make crds`");
    assert_eq!(crd["metadata"]["name"], ours["metadata"]["name"]);
    assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    assert!(!chart().join("crds").exists(), "Helm never upgrades what is in the crds directory");
    assert!(of_kind(&self::objects(&["crds.install=false"]), "CustomResourceDefinition").is_empty());
}

/// The chart, under an API group of this test's own and without a running operator, on a real Kubernetes.
struct Release {
    chart: tempfile::TempDir,
    /// Of the namespace, and of the API group.
    name: String,
    /// Deleted at the end: Helm leaves it.
    crd: InstalledCrd,
}

impl Release {
    fn prepare() -> Self {
        let name = unique("chart");
        let release = Self {
            chart: tempfile::tempdir().unwrap(),
            crd: InstalledCrd { name: format!("dialogclusters.{name}.{}", api::GROUP) },
            name,
        };
        copy(&chart(), release.chart.path(), &|text| {
            text.replace(api::GROUP, &format!("{}.{}", release.name, api::GROUP))
        });
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": release.name,
                "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
            },
        });
        release.create(&namespace, &[]).unwrap();
        release
    }

    fn helm(&self, verb: &str, more: &[&str]) -> Output {
        let mut helm = tool("helm");
        for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(variable, self.chart.path().join(".helm"));
        }
        helm.args([verb, "operator", "--namespace", &self.name]).args(more).output().unwrap()
    }

    /// `helm install` or `helm upgrade`.
    fn bring(&self, verb: &str, more: &[&str]) -> String {
        let chart = self.chart.path().to_str().unwrap();
        let output = self.helm(verb, &[&[chart, "--set", "replicaCount=0"], more].concat());
        assert!(output.status.success(), "helm {verb}: {}", said(&output));
        self.kubectl(&[
            "wait",
            "--for=condition=Established",
            &format!("crd/{}", self.crd.name),
            "--timeout=30s",
        ]);
        String::from_utf8(output.stdout).unwrap()
    }

    fn uninstall(&self) {
        let output = self.helm("uninstall", &[]);
        assert!(output.status.success(), "{}", said(&output));
    }

    fn kubectl(&self, args: &[&str]) -> String {
        run(tool("kubectl").args(["--namespace", &self.name]).args(args))
    }

    fn get(&self, what: &str, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", what, name, "--output=json"])).unwrap()
    }

    /// `kubectl create`; when it is refused, with the API server's words.
    fn create(&self, object: &Value, more: &[&str]) -> Result<(), String> {
        let file = self.chart.path().join("object.json");
        fs::write(&file, object.to_string()).unwrap();
        let mut kubectl = tool("kubectl");
        kubectl.args(["--namespace", &self.name, "create", "--filename"]).arg(&file).args(more);
        let output = kubectl.output().unwrap();
        fs::remove_file(file).unwrap();
        if output.status.success() { Ok(()) } else { Err(said(&output)) }
    }

    /// Whether the operator's account may do this.
    fn may(&self, what: &[&str]) -> bool {
        let account = format!("--as=system:serviceaccount:{}:operator", self.name);
        let output = tool("kubectl").args(["auth", "can-i", &account]).args(what).output().unwrap();
        match String::from_utf8_lossy(&output.stdout).trim() {
            "yes" => true,
            "no" => false,
            other => panic!("can-i {what:?}: {other} {}", said(&output)),
        }
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        // Whatever is left of it, however the test ended.
        let _ = self.helm("uninstall", &["--ignore-not-found"]);
        let delete = ["delete", "namespace", &self.name, "--ignore-not-found", "--wait=false"];
        let output = tool("kubectl").args(delete).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("namespace {} is still there: {output:?}", self.name);
        }
    }
}

fn copy(from: &Path, to: &Path, change: &impl Fn(&str) -> String) {
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&from, &to, change);
        } else {
            fs::write(&to, change(&fs::read_to_string(from).unwrap())).unwrap();
        }
    }
}

#[test]
fn uninstall_keeps_clusters_and_upgrade_changes_the_crd() {
    let release = Release::prepare();
    let notes = release.bring("install", &[]);
    for next in
        ["kubectl apply -f -", "kubectl -n shop scale dlc/dialogs --replicas=2", "--for=condition=Balanced"]
    {
        assert!(notes.contains(next), "the notes do not say '{next}':\n{notes}");
    }
    let group = format!("{}.{}", release.name, api::GROUP);
    let cluster = json!({
        "apiVersion": format!("{group}/v1alpha1"), "kind": "DialogCluster", "metadata": {"name": "dialogs"}, "spec": {}
    });
    release.create(&cluster, &[]).unwrap();
    let made = release.get(&release.crd.name, "dialogs");

    confined(&release);
    rights_in_practice(&release, &group);

    let file = release.chart.path().join("files/dialogclusters.yaml");
    let crd = fs::read_to_string(&file).unwrap();
    let (before, after) = ("description: workers asked for", "description: workers that somebody asked for");
    assert!(crd.contains(before));
    fs::write(&file, crd.replace(before, after)).unwrap();
    release.bring("upgrade", &[]);
    let columns = &release.get("crd", &release.crd.name)["spec"]["versions"][0]["additionalPrinterColumns"];
    assert_eq!(columns[0]["description"], "workers that somebody asked for");

    release.uninstall();
    assert_eq!(release.kubectl(&["get", "deployment,service,pdb", "--output=name"]), "");
    let kept = release.get("crd", &release.crd.name);
    assert_eq!(kept["metadata"]["deletionTimestamp"], Value::Null);
    assert_eq!(release.get(&release.crd.name, "dialogs"), made);

    release.bring("install", &[]); // takes up again what it left
    assert_eq!(release.get(&release.crd.name, "dialogs"), made);
}

/// The API server itself takes the pod under the restricted Pod Security Standard.
fn confined(release: &Release) {
    let deployment = release.get("deployment", "operator");
    let mut pod = deployment["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("operator");
    release.create(&pod, &["--dry-run=server"]).unwrap();
    pod["spec"]["securityContext"]["runAsNonRoot"] = json!(false);
    let refusal = release.create(&pod, &["--dry-run=server"]).unwrap_err();
    assert!(refusal.contains("violates PodSecurity"), "{refusal}");
}

fn rights_in_practice(release: &Release, group: &str) {
    let own = format!("--namespace={}", release.name);
    let clusters = format!("dialogclusters.{group}");
    let status = ["patch", &clusters, "--subresource=status", "--namespace=default"];
    assert!(release.may(&status));
    for allowed in ["create statefulsets.apps", "patch secrets", "delete pods", "create events.events.k8s.io"]
    {
        assert!(
            release.may(&[allowed.split(' ').collect(), vec!["--namespace=default"]].concat()),
            "{allowed}"
        );
    }
    assert!(release.may(&["update", "leases.coordination.k8s.io", &own]));
    assert!(!release.may(&["update", "leases.coordination.k8s.io", "--namespace=default"]));
    for (verb, resource) in [
        ("delete", "secrets"),
        ("patch", clusters.as_str()),
        ("delete", clusters.as_str()),
        ("list", "nodes"),
        ("create", "roles.rbac.authorization.k8s.io"),
    ] {
        assert!(!release.may(&[verb, resource, "--namespace=default"]), "{verb} {resource}");
    }
    assert!(!release.may(&["create", "pods", "--subresource=exec", "--namespace=default"]));

    release.bring("upgrade", &["--set", &format!("watchNamespaces={{{}}}", release.name)]);
    assert!(release.may(&["list", "secrets", &own]));
    assert!(!release.may(&["list", "secrets", "--namespace=default"]));
    assert!(!release.may(&["list", &clusters, "--all-namespaces"]));
    release.bring("upgrade", &["--reset-values"]);
    assert!(release.may(&["list", "secrets", "--namespace=default"]));
}
