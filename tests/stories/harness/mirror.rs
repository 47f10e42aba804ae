//! An admission webhook that takes all images of a namespace's pods and StatefulSets from a mirror, as clusters without a
//! way to the internet have it. It runs in the story's process, which the local API server reaches.

use std::{io::Write as _, net::TcpListener, process::Command, sync::Arc};

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Namespace},
};
use kube::{Api, api::PostParams};
use rustls::{
    ServerConfig, ServerConnection, Stream,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::{Value, json};

use super::Story;

/// Where all images are; the kubelet has them under these names, too.
pub const MIRROR: &str = "mirror.example";

/// Until this is dropped.
pub struct Mirror {
    names: Vec<String>,
}

impl Story {
    /// From now on everybody has to use the mirror's images; `image` is there under these names.
    pub async fn mirror(&self, image: &str, names: &[&str]) -> Mirror {
        let names: Vec<String> = names.iter().map(|name| format!("{MIRROR}/{name}")).collect();
        for name in &names {
            ctr(&["images", "tag", "--force", image, name]);
        }
        let mirror = Mirror { names };
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let tls = tls.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || serve(&listener, &Arc::new(tls)));

        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        // It is for this namespace alone, and ends with it.
        let namespace = Api::<Namespace>::all(self.client.clone()).get(&self.namespace).await.unwrap();
        let webhook = json!({
            "metadata": {"name": self.namespace, "ownerReferences": [{
                "apiVersion": "v1", "kind": "Namespace", "name": self.namespace, "uid": namespace.metadata.uid,
            }]},
            "webhooks": [{
                "name": "mirror.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "failurePolicy": "Fail", "timeoutSeconds": 5, "reinvocationPolicy": "Never",
                "clientConfig": {
                    "url": format!("https://127.0.0.1:{port}/"),
                    "caBundle": ByteString(cert.pem().into_bytes()),
                },
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}},
                "rules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]},
                    {"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["statefulsets"],
                     "operations": ["CREATE", "UPDATE"]},
                ],
            }],
        });
        api.create(&PostParams::default(), &serde_json::from_value(webhook).unwrap()).await.unwrap();
        mirror
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        for name in &self.names {
            ctr(&["images", "rm", name]);
        }
    }
}

fn ctr(arguments: &[&str]) {
    let mut command = Command::new("ctr");
    command.args(["--address", "/run/dialog-local-kubernetes/containerd.sock", "--namespace", "k8s.io"]);
    testkit::run(command.args(arguments));
}

fn serve(listener: &TcpListener, tls: &Arc<ServerConfig>) {
    for tcp in listener.incoming() {
        let (tls, Ok(mut tcp)) = (Arc::clone(tls), tcp) else { continue };
        std::thread::spawn(move || {
            let mut connection = ServerConnection::new(tls).unwrap();
            let mut stream = Stream::new(&mut connection, &mut tcp);
            let Some(review) = request(&mut stream) else { return };
            let answer = json!({
                "apiVersion": review["apiVersion"], "kind": review["kind"],
                "response": {
                    "uid": review["request"]["uid"], "allowed": true,
                    "patchType": "JSONPatch",
                    "patch": ByteString(mirrored(&review["request"]["object"]).to_string().into_bytes()),
                },
            })
            .to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                answer.len()
            );
            let _ = stream.write_all((head + &answer).as_bytes());
            connection.send_close_notify();
            let _ = connection.write_tls(&mut tcp);
        });
    }
}

/// The body of one request.
fn request(stream: &mut impl std::io::Read) -> Option<Value> {
    let (mut text, mut buffer) = (Vec::new(), [0; 8_192]);
    loop {
        let end = text.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&text[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
            let body = &text[end + 4..];
            if body.len() >= length.trim().parse().ok()? {
                return serde_json::from_slice(body).ok();
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(read) => text.extend(&buffer[..read]),
        }
    }
}

/// A JSON patch that puts the mirror before each image that is not there yet.
fn mirrored(object: &Value) -> Value {
    let base = if object["spec"]["template"].is_null() { "/spec" } else { "/spec/template/spec" };
    let mut patch = Vec::new();
    for kind in ["initContainers", "containers"] {
        let list = format!("{base}/{kind}");
        for (number, container) in
            object.pointer(&list).and_then(Value::as_array).into_iter().flatten().enumerate()
        {
            let image = container["image"].as_str().unwrap_or_default();
            if !image.starts_with(MIRROR) {
                let value = format!("{MIRROR}/{image}");
                patch
                    .push(json!({"op": "replace", "path": format!("{list}/{number}/image"), "value": value}));
            }
        }
    }
    Value::Array(patch)
}
