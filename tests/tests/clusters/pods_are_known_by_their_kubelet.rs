//! The agent as a daemon on a real node of a real cluster, as `deploy/kubernetes` has it, and pods that come to its socket.

use std::{fs, path::Path, time::Duration};

use alcazar_testkit::{CaProcess, Kubernetes, Node, free_port, turn, until};
use anyhow::{Context, Result, ensure};

/// A pod takes its time on a loaded machine.
const START: Duration = Duration::from_secs(120);

/// The manifest as people apply it; where things are is another on this machine.
const MANIFEST: &str = include_str!("../../../deploy/kubernetes/node-agent.yaml");

struct Here<'k> {
    kubernetes: &'k Kubernetes,
    node: Node,
    home: &'k Path,
    admin: u16,
    ca: CaProcess,
}

impl Here<'_> {
    /// The manifest for this machine, with the agent asking `server` for its pods, who is known by `root`.
    fn manifest(&self, server: &str, root: &Path) -> Result<String> {
        let mut text = MANIFEST.to_owned();
        for (there, here) in [
            ("alcazar-ca.alcazar-system.svc:15012", self.ca.address()),
            ("kubelet: https://127.0.0.1:10250", server.to_owned()),
            (
                "tokenFile: /run/tokens/kubernetes",
                format!("tokenFile: /run/tokens/kubernetes\n      cgroupRoot: {}", self.node.cgroup_root()),
            ),
            ("hostPath: {path: /var/lib/kubelet/pki/kubelet.crt", format!("hostPath: {{path: {}", root.display())),
            ("hostPath: {path: /var/lib/alcazar-agent", format!("hostPath: {{path: {}/agent", self.home.display())),
            ("hostPath: {path: /run/alcazar", format!("hostPath: {{path: {}/s", self.home.display())),
            ("15020", self.admin.to_string()),
        ] {
            ensure!(text.contains(there), "{there:?} is not in the manifest");
            text = text.replace(there, &here);
        }
        Ok(text)
    }

    /// A pod on the node that watches what the agent gives to it, from the agent's own directory.
    fn pod(&self, name: &str, account: Option<&str>, resources: &str) -> String {
        let account =
            account.map(|account| format!("serviceAccountName: {account}, automountServiceAccountToken: false, "));
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: n1, hostNetwork: true, {}terminationGracePeriodSeconds: 1,\n  \
             containers: [{{name: main, image: 'localhost/spiffe-client:1', imagePullPolicy: Never, command: [/spiffe-client, watch], resources: {{{resources}}},\n    \
             env: [{{name: SPIFFE_ENDPOINT_SOCKET, value: 'unix:///run/alcazar/agent.sock'}}],\n    \
             volumeMounts: [{{name: alcazar, mountPath: /run/alcazar, readOnly: true}}]}}],\n  \
             volumes: [{{name: alcazar, hostPath: {{path: {}/s, type: Directory}}}}]}}\n",
            account.unwrap_or_default(),
            self.home.display(),
        )
    }

    fn until_it_says(&self, pod: &str, what: &str) -> Result<()> {
        until(&format!("{what:?} of the pod {pod}"), START, || self.said(pod).contains(what).then_some(()))
            .with_context(|| {
                format!("{}\nthe agent:\n{}\nthe kubelet:\n{}", self.said(pod), self.agent(), self.node.log())
            })
    }

    fn said(&self, pod: &str) -> String {
        self.node.said("shop", pod, "main")
    }

    /// What the agent has said so far.
    fn agent(&self) -> String {
        self.node.said("alcazar-system", "alcazar-node-agent", "agent")
    }

    fn until_the_agent_says(&self, what: &str) -> Result<()> {
        until(&format!("{what:?} in the agent's log"), START, || self.agent().contains(what).then_some(()))
            .with_context(|| format!("{}\nthe kubelet:\n{}", self.agent(), self.node.log()))
    }

    /// The container of a pod.
    fn container(&self, pod: &str) -> Result<String> {
        let path = "jsonpath={.status.containerStatuses[0].containerID}";
        until("its container", START, || {
            let id = self.kubernetes.kubectl(&["--namespace", "shop", "get", "pod", pod, "--output", path]).ok()?;
            id.contains("containerd://").then_some(id)
        })
    }

    /// What a new process in a pod gets that asks for an identity: what it says, or why it gets nothing.
    fn ask(&self, container: &str) -> Result<String, String> {
        let output = self.node.exec(container, &["/spiffe-client", "jwt", "db"]).map_err(|error| error.to_string())?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// Asks for what takes one answer: a token is checked by a source that never gives up.
    fn until_it_is_refused(&self, container: &str) -> Result<()> {
        until("a refusal", START, || {
            let output = self.node.exec(container, &["/spiffe-client", "bundles"]).ok()?;
            String::from_utf8_lossy(&output.stderr).contains("PermissionDenied").then_some(())
        })
        .with_context(|| self.agent())
    }

    fn until_it_gets(&self, container: &str, what: &str) -> Result<()> {
        let mut last = String::new();
        until(what, START, || {
            last = match self.ask(container) {
                Ok(said) => said,
                Err(why) => why,
            };
            last.contains(what).then_some(())
        })
        .with_context(|| format!("{last}\nthe agent:\n{}", self.agent()))
    }
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const DB: &str = "spiffe://cluster.local/ns/shop/sa/db";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_pod_gets_the_identity_of_its_account_from_one_socket_and_nobody_else_does() {
    let _turn = turn();
    let Some(kubernetes) = Kubernetes::start().await.unwrap() else { return };
    let Some(node) = Node::start(&kubernetes, "n1").unwrap() else { return };
    let home = tempfile::Builder::new().prefix("pods").tempdir().unwrap();
    let more = format!(
        "kubernetes: {{kubeconfig: {}}}\ncallers: {{kubernetes: {{nodeAgents: [alcazar-system/alcazar-node-agent], podsExcept: [shop/stranger]}}}}\n",
        kubernetes.kubeconfig().display(),
    );
    let ca = CaProcess::start(home.path(), &more).unwrap();
    ca.wait_ready().unwrap();
    // A pod runs as any user that it likes, here as root: that is nobody's proof of anything.
    ca.register_as("of-root", "n1", "uid:0", Duration::ZERO).await.unwrap();
    let here = Here { kubernetes: &kubernetes, node, home: home.path(), admin: free_port().unwrap(), ca };
    run(here).unwrap();
}

fn run(mut here: Here<'_>) -> Result<()> {
    let kubernetes = here.kubernetes;
    here.node.import_program("registry.example/alcazar-node-agent:0.1.0", "alcazar-node-agent")?;
    let kubelet = format!("kubelet: https://127.0.0.1:{}", here.node.port());
    let root = fs::read_to_string(here.ca.data().join("hierarchy/root.pem"))?;
    let root: String = root.lines().map(|line| format!("    {line}\n")).collect();
    kubernetes.apply(&here.manifest(&kubelet, &here.node.kubelet_certificate())?)?;
    kubernetes.apply(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: alcazar-root, namespace: alcazar-system}}\ndata:\n  root.pem: |\n{root}"
    ))?;
    let accounts = ["web", "db", "stranger"].map(|name| {
        format!("---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: shop}}\n")
    });
    kubernetes.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop}}\n{}", accounts.concat()))?;
    here.until_the_agent_says("the pods of this node are listed")?;

    // Two accounts, one socket; and one whose pods the CA gives to no node.
    // The kubelet keeps pods of each class in another place.
    for (pod, account, resources) in [
        ("web-1", "web", "requests: {cpu: 10m}"),
        ("db-1", "db", "limits: {cpu: 500m, memory: 256Mi}"),
        ("stranger-1", "stranger", ""),
    ] {
        kubernetes.apply(&here.pod(pod, Some(account), resources))?;
    }
    here.until_it_says("web-1", WEB)?;
    here.until_it_says("db-1", DB)?;
    ensure!(!here.said("web-1").contains(DB) && !here.said("db-1").contains(WEB), "each has its own");
    here.until_it_says("stranger-1", "PermissionDenied")?;
    here.until_the_agent_says("in the pod shop/stranger-1 of the service account stranger")?;
    ensure!(!here.said("stranger-1").contains("spiffe://"), "{}", here.said("stranger-1"));

    // A pod of a file on the node, whatever it says, is of no account.
    fs::write(here.node.static_pods().join("fixed.yaml"), here.pod("fixed", None, "").replace("nodeName: n1, ", ""))?;
    here.until_it_says("fixed-n1", "PermissionDenied")?;
    here.until_the_agent_says("its pod shop/fixed-n1 is a static one")?;
    here.until_the_agent_says(
        "the closest is shop.of-root (spiffe://cluster.local/ns/shop/sa/of-root), which needs a selector k8s: to be a pod's",
    )?;
    for pod in ["web-1", "db-1", "stranger-1", "fixed-n1"] {
        ensure!(!here.said(pod).contains("of-root"), "{}", here.said(pod));
    }

    // Pods that are known go on without the kubelet.
    let [web, db] = [here.container("web-1")?, here.container("db-1")?];
    here.node.kill_kubelet()?;
    here.goes_on_without_a_kubelet(&web)?;
    here.node.start_kubelet()?;

    // The API server lists them, too. What it no longer lists gets nothing, although its process is still there.
    let api = here.manifest(&format!("api: {}", kubernetes.server()), &kubernetes.root())?;
    kubernetes.apply(&api.replace("resources: [nodes/pods]\n  verbs: [get]", "resources: [pods]\n  verbs: [list]"))?;
    here.until_the_agent_says("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1")?;
    here.until_it_gets(&db, DB)?;
    here.node.kill_kubelet()?;
    kubernetes.kubectl(&["--namespace", "shop", "delete", "pod", "db-1", "--force", "--grace-period=0"])?;
    here.until_it_is_refused(&db)?;
    here.until_the_agent_says("which is not on the list of this node's pods")?;
    here.until_it_gets(&web, WEB)
}

impl Here<'_> {
    /// The kubelet is away: a process in a pod that is known gets its identity, and the agent has noticed that nobody lists pods.
    fn goes_on_without_a_kubelet(&self, container: &str) -> Result<()> {
        until("that the kubelet is away", START, || {
            let got = self.ask(container);
            let noticed = self.agent().contains("cannot list the pods of this node");
            match got {
                Ok(said) if noticed && said.contains(WEB) => Some(Ok(())),
                Ok(_) => None,
                Err(why) => Some(Err(anyhow::anyhow!("{why}"))),
            }
        })?
        .with_context(|| self.agent())
    }
}
