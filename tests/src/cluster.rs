use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{Machine, Process, binary};

/// A cluster whose root is kept elsewhere: the four binaries, each as a process of its own, with two workloads on one node,
/// `shop/reviews` in front of an application and `shop/caller`. Its CA starts once it has its certificate.
#[derive(Debug)]
pub struct Cluster {
    machine: Machine,
    name: String,
    ports: [u16; PORTS],
    processes: Vec<(&'static str, Process)>,
}

/// The machine that keeps the roots.
#[derive(Debug)]
pub struct Vault {
    machine: Machine,
}

impl Vault {
    /// The machine that keeps roots, below `folder`.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn new(folder: &Path) -> Result<Self> {
        let machine = Machine::new(folder, "vault")?;
        machine.write("passphrase", "correct horse battery staple\n")?;
        Ok(Self { machine })
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Makes a root in the folder `root`; its fingerprint.
    ///
    /// # Errors
    /// When it is not made.
    pub fn init(&self, root: &str) -> Result<String> {
        let line = format!("root init --out {root} --trust-domain {TRUST_DOMAIN} --passphrase-file passphrase");
        let said = self.machine.alcazar(&line)?;
        let print = said.lines().find_map(|line| line.trim().strip_prefix("fingerprint"));
        Ok(print.with_context(|| said.clone())?.trim().to_owned())
    }

    /// The ceremony for a cluster: its CA asks, the root signs with these options, and what it signed is installed.
    ///
    /// # Errors
    /// When one of the three does not succeed.
    pub fn certify(&self, cluster: &Cluster, root: &str, options: &str) -> Result<()> {
        let (own, name) = (cluster.machine(), &cluster.name);
        own.alcazar(&format!("ca request --config ca.yaml --out {name}.csr"))?;
        own.carry(&format!("{name}.csr"), &self.machine)?;
        let set = format!("cacerts-{name}");
        self.machine.alcazar(&format!(
            "root sign {name}.csr --root {root} --passphrase-file passphrase --out {set} --yes{options}"
        ))?;
        self.machine.carry(&set, own)?;
        own.alcazar(&format!("ca install {set} --config ca.yaml"))?;
        Ok(())
    }
}

impl Cluster {
    /// The configuration of one, below `folder`; `more` is said to its CA besides.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn new(folder: &Path, name: &str, more: &str) -> Result<Self> {
        let machine = Machine::new(folder, name)?;
        let listeners = (0..PORTS).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<Vec<_>, _>>()?;
        let mut ports = [0; PORTS];
        for (port, listener) in ports.iter_mut().zip(&listeners) {
            *port = listener.local_addr()?.port();
        }
        let [ca, ca_admin, ..] = ports;
        let registrations: String = ["alcazar-system/alcazar-control", "shop/reviews", "shop/caller"]
            .map(|identity| {
                let id = identity.replace('/', ".");
                format!("- {{id: {id}, node: one, identity: {identity}, selectors: ['socket:{id}']}}\n")
            })
            .concat();
        machine.write(
            "ca.yaml",
            &format!(
                "trustDomain: {TRUST_DOMAIN}\ncluster: {name}\ndataDir: {}\nlisten: 127.0.0.1:{ca}\nadmin: 127.0.0.1:{ca_admin}\n\
                 registrations:\n{registrations}{more}",
                machine.file("data").display()
            ),
        )?;
        Ok(Self { machine, name: name.to_owned(), ports, processes: Vec::new() })
    }

    /// Where it is.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The administration socket of its CA.
    pub fn socket(&self) -> PathBuf {
        self.machine.file("data/admin.sock")
    }

    /// Where its CA listens.
    pub fn address(&self) -> String {
        let [ca, ..] = self.ports;
        format!("127.0.0.1:{ca}")
    }

    /// The bundle that its CA publishes, in PEM.
    ///
    /// # Errors
    /// When the CA does not answer.
    pub fn bundle(&self) -> Result<String> {
        self.alcazar("bundle show --format pem")
    }

    /// The fingerprints of the roots in a bundle.
    ///
    /// # Errors
    /// When OpenSSL does not read them.
    pub fn prints(&self, bundle: &str) -> Result<BTreeSet<String>> {
        let blocks = bundle.split_inclusive("-----END CERTIFICATE-----").filter(|block| block.contains("BEGIN"));
        let print = |(place, block): (usize, &str)| {
            let name = format!("root-{place}.pem");
            self.machine.write(&name, block)?;
            let said = self.machine.openssl(&format!("x509 -in {name} -noout -fingerprint -sha256"))?;
            let print = said.trim().split_once('=').with_context(|| said.clone())?.1;
            anyhow::Ok(print.replace(':', "").to_lowercase())
        };
        blocks.enumerate().map(print).collect()
    }

    /// The root above the intermediate that its CA signs with.
    ///
    /// # Errors
    /// When the CA does not answer.
    pub fn signs_under(&self) -> Result<String> {
        let said = self.alcazar("ca hierarchy")?;
        let root = said.lines().find_map(|line| line.strip_prefix("root")?.split_whitespace().next());
        Ok(root.with_context(|| said.clone())?.to_owned())
    }

    /// The administration port of its CA, with its health and its CRLs.
    pub fn admin(&self) -> String {
        let [_, admin, ..] = self.ports;
        format!("127.0.0.1:{admin}")
    }

    /// What `alcazar` says of its CA.
    ///
    /// # Errors
    /// When it does not succeed.
    pub fn alcazar(&self, line: &str) -> Result<String> {
        self.machine.alcazar(&format!("{line} --ca {}", self.socket().display()))
    }

    /// Starts its CA, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_ca(&mut self) -> Result<()> {
        let [_, admin, ..] = self.ports;
        self.start("alcazar-ca", "ca", Some(admin))
    }

    /// Starts its node agent, which joins by a token.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_agent(&mut self) -> Result<()> {
        let [ca, _, admin, ..] = self.ports;
        let name = &self.name;
        let token = self.machine.run(&binary("alcazar-ca")?, "token --node one --config ca.yaml")?;
        anyhow::ensure!(token.status.success(), "{token:?}");
        fs::write(self.machine.file("token"), token.stdout.trim_ascii())?;
        self.machine.write(
            "agent.yaml",
            &format!(
                "trustDomain: {TRUST_DOMAIN}\ncluster: {name}\nnode: one\ncaAddress: 127.0.0.1:{ca}\njoinTokenFile: token\n\
                 dataDir: agent\nsocketsDir: sockets\nadmin: 127.0.0.1:{admin}\n"
            ),
        )?;
        self.start("alcazar-node-agent", "agent", Some(admin))
    }

    /// Starts its control plane and its two proxies; `http` and `tcp` are ports of the application of `shop/reviews`.
    ///
    /// # Errors
    /// When one does not become ready.
    pub fn start_proxies(&mut self, http: u16, tcp: u16) -> Result<()> {
        let [_, _, _, control, control_admin, reviews, reviews_admin, caller, outbound, caller_admin] = self.ports;
        let name = &self.name;
        fs::create_dir_all(self.machine.file("policies"))?;
        self.machine.write(
            "control.yaml",
            &format!(
                "mesh: mesh.yaml\nlisten: 127.0.0.1:{control}\nsdsSocket: sockets/alcazar-system.alcazar-control.sock\nadmin: 127.0.0.1:{control_admin}\n"
            ),
        )?;
        self.machine.write(
            "mesh.yaml",
            &format!(
                "trustDomain: {TRUST_DOMAIN}
cluster: {name}
policies: policies
workloads:
- {{name: reviews, namespace: shop, serviceAccount: reviews, address: 127.0.0.1, inbound: '127.0.0.1:{reviews}', ports: [{{name: http, number: {http}, protocol: HTTP}}, {{name: db, number: {tcp}, protocol: TCP}}]}}
- {{name: caller, namespace: shop, serviceAccount: caller, address: 127.0.0.1, inbound: '127.0.0.1:{caller}', outbound: '127.0.0.1:{outbound}'}}
"
            ),
        )?;
        let proxy = |name: &str, inbound: u16, outbound: &str, admin: u16| {
            format!(
                "workload: shop/{name}\nsdsSocket: sockets/shop.{name}.sock\ncontrol: {{address: '127.0.0.1:{control}'}}\ninbound: 127.0.0.1:{inbound}\n\
                 {outbound}admin: 127.0.0.1:{admin}\nworkers: 1\n"
            )
        };
        self.machine.write("reviews.yaml", &proxy("reviews", reviews, "", reviews_admin))?;
        let listens = format!("outbound: 127.0.0.1:{outbound}\n");
        self.machine.write("caller.yaml", &proxy("caller", caller, &listens, caller_admin))?;
        self.start("alcazar-control", "control", Some(control_admin))?;
        self.start("alcazar-proxy", "reviews", Some(reviews_admin))?;
        self.start("alcazar-proxy", "caller", Some(caller_admin))
    }

    /// The outbound proxy of `shop/caller`.
    pub fn outbound(&self) -> String {
        let [.., outbound, _] = self.ports;
        format!("127.0.0.1:{outbound}")
    }

    /// The mesh port of `shop/reviews`.
    pub fn inbound(&self) -> String {
        let [_, _, _, _, _, inbound, ..] = self.ports;
        format!("127.0.0.1:{inbound}")
    }

    /// One of its processes: `ca`, `agent`, `control`, `reviews`, `caller`.
    ///
    /// # Errors
    /// When it was not started.
    pub fn process(&mut self, name: &str) -> Result<&mut Process> {
        let found = self.processes.iter_mut().find(|(known, _)| *known == name);
        Ok(&mut found.with_context(|| format!("{name} was not started"))?.1)
    }

    /// What all of them have said.
    pub fn log(&self) -> String {
        self.processes.iter().map(|(name, process)| format!("--- {name}\n{}", process.log())).collect()
    }

    fn start(&mut self, program: &str, name: &'static str, admin: Option<u16>) -> Result<()> {
        let process = Process::component(program, self.machine.path(), name)?;
        self.processes.retain(|(known, _)| *known != name);
        // What was started last ends first.
        self.processes.insert(0, (name, process));
        let (Some(admin), Some((_, process))) = (admin, self.processes.first()) else { return Ok(()) };
        process.wait_ready(admin).with_context(|| self.log())
    }
}

/// The trust domain of these clusters.
const TRUST_DOMAIN: &str = "prod.example";
const PORTS: usize = 10;
