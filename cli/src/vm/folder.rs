//! What the folder of a machine holds. Nothing in it is a decision of the machine: it is carried there and installed.

/// What is known of a machine that joins.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) name: String,
    /// `<namespace>/<name>`: how mesh.yaml and the proxy call its workload.
    pub(super) workload: String,
    /// The registration, and the socket of the workload where it has one.
    pub(super) registration: String,
    pub(super) has_socket: bool,
    pub(super) spiffe_id: String,
    pub(super) trust_domain: String,
    pub(super) cluster: String,
    pub(super) ca_address: String,
    /// The control plane of its proxy, and the user whose processes may call through it.
    pub(super) proxy: Option<(String, u32)>,
    pub(super) root_pem: String,
}

/// A file: its name, its mode, what is in it. The token is not among them.
pub(super) type File = (&'static str, u32, String);

/// Every file of the folder but the token.
pub(super) fn files(machine: &Machine) -> Vec<File> {
    let mut files = vec![
        ("agent.yaml", 0o644, agent(machine)),
        ("root-cert.pem", 0o644, machine.root_pem.clone()),
        ("alcazar-node-agent.service", 0o644, AGENT_SERVICE.to_owned()),
        ("alcazar-node-agent.socket", 0o644, AGENT_SOCKET.to_owned()),
        ("install.sh", 0o755, INSTALL.to_owned()),
        ("README.md", 0o644, readme(machine)),
    ];
    if let Some((control, user)) = &machine.proxy {
        files.push(("proxy.yaml", 0o644, proxy(machine, control, *user)));
        files.push((PROXY_UNIT, 0o644, PROXY_SERVICE.to_owned()));
    }
    files
}

fn agent(machine: &Machine) -> String {
    format!(
        "trustDomain: {}\ncluster: {}\nnode: {}\ncaAddress: {}\n\
         # Used once. A new one is taken when the service starts again.\n\
         joinTokenFile: /run/credentials/alcazar-node-agent.service/join-token\n\
         dataDir: /var/lib/alcazar-agent\nsocketsDir: /run/alcazar\nadmin: 127.0.0.1:15020\n",
        machine.trust_domain, machine.cluster, machine.name, machine.ca_address
    )
}

fn proxy(machine: &Machine, control: &str, user: u32) -> String {
    format!(
        "workload: {}\nsdsSocket: {}\ncontrol: {{address: \"{control}\"}}\n\
         inbound: 0.0.0.0:15008\noutbound: 127.0.0.1:15101\nadmin: 127.0.0.1:15021\n\
         # Whose processes may call as the workload, by number; without it, whoever can connect to `outbound`.\n\
         outboundUser: {user}\n",
        machine.workload,
        socket(machine)
    )
}

fn socket(machine: &Machine) -> String {
    if machine.has_socket { format!("/run/alcazar/{}.sock", machine.registration) } else { SHARED.to_owned() }
}

fn readme(machine: &Machine) -> String {
    let Machine { name, spiffe_id, .. } = machine;
    let mut text = format!(
        "# {name}: {spiffe_id}\n\n\
         Carry this folder to the machine `{name}`, over a way that nobody else reads: whoever has `token` before the machine\n\
         uses it becomes the machine. There, as root:\n\n\
         ```sh\n./install.sh\nsystemctl status alcazar-node-agent\ncurl -fsS http://127.0.0.1:15020/readyz\n```\n\n\
         The programs `alcazar-node-agent`"
    );
    text.push_str(if machine.proxy.is_some() { " and `alcazar-proxy` are" } else { " is" });
    text.push_str(" expected in `/usr/bin`.\n\n");
    let socket = socket(machine);
    text.push_str(&match &machine.proxy {
        Some(_) => format!(
            "The proxy serves the mesh on port 15008 and the application on 127.0.0.1:15101: start the application with\n\
             `http_proxy=http://127.0.0.1:15101`, and it calls others by names such as `http://reviews.shop/`. The mesh has to\n\
             know the workload `{}` with this machine's address (mesh.yaml).\n",
            machine.workload
        ),
        None => format!(
            "The workload has its certificate by Envoy's SDS and the SPIFFE Workload API on `{socket}`{}\n",
            if machine.has_socket { ", which is the agent's user's alone." } else { "." }
        ),
    });
    text.push_str(
        "\nWhen the token has been used or is over, it is worth nothing, and the machine renews by itself from then on. Leave the file\n\
         `/etc/alcazar/token` where it is, empty if you like: the service does not start without it. To let the machine\n\
         join anew: `alcazar vm onboard` once more, put the new `token` to `/etc/alcazar/token`, and\n\
         `systemctl restart alcazar-node-agent`.\n",
    );
    text
}

/// How the agent knows the proxy.
pub(super) const PROXY_UNIT: &str = "alcazar-proxy.service";
/// The socket that systemd holds for the agent.
const SHARED: &str = "/run/alcazar-agent.sock";
const AGENT_SERVICE: &str = include_str!("../../../deploy/systemd/alcazar-node-agent.service");
const AGENT_SOCKET: &str = include_str!("../../../deploy/systemd/alcazar-node-agent.socket");
const PROXY_SERVICE: &str = include_str!("../../../deploy/systemd/alcazar-proxy.service");
const INSTALL: &str = include_str!("../../../deploy/systemd/install.sh");

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(control: Option<&str>) -> Machine {
        Machine {
            name: "vm-1".into(),
            workload: "shop/vm-1".into(),
            registration: "shop.vm-1".into(),
            has_socket: control.is_none(),
            spiffe_id: "spiffe://td.example/ns/shop/sa/orders".into(),
            trust_domain: "td.example".into(),
            cluster: "east".into(),
            ca_address: "ca.example:15012".into(),
            proxy: control.map(|control| (control.to_owned(), 1000)),
            root_pem: "-----BEGIN CERTIFICATE-----\n".into(),
        }
    }

    #[test]
    fn the_programs_take_what_is_in_the_folder() {
        let files = files(&machine(Some("control.example:15010")));
        let text = |name: &str| files.iter().find(|(file, ..)| *file == name).unwrap().2.as_str();
        let home = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = home.path().join(name);
            std::fs::write(&path, text(name)).unwrap();
            path
        };
        let agent: alcazar_node_agent::Config = alcazar_service::config::load(&put("agent.yaml")).unwrap();
        assert_eq!(agent.node_id().unwrap().to_string(), "spiffe://td.example/node/east/vm-1");
        let proxy: alcazar_proxy::Config = alcazar_service::config::load(&put("proxy.yaml")).unwrap();
        assert_eq!(proxy.sds_socket.to_str(), Some("/run/alcazar-agent.sock"));
        assert_eq!(proxy.workload.as_str(), "shop/vm-1");
        // Each a user of its own, and by the paths that the units name.
        for (unit, user) in [("alcazar-node-agent.service", "alcazar"), ("alcazar-proxy.service", "alcazar-proxy")] {
            assert!(text(unit).contains(&format!("\nDynamicUser=yes\nUser={user}\n")), "{unit}");
        }
        assert!(text("alcazar-node-agent.service").contains("StateDirectory=alcazar-agent"));
        assert!(agent.join_token_file.unwrap().ends_with("alcazar-node-agent.service/join-token"));
        assert!(text("README.md").contains("http_proxy=http://127.0.0.1:15101"));
    }

    #[test]
    fn a_machine_without_a_proxy_has_none_of_its_files() {
        let names: Vec<_> = files(&machine(None)).into_iter().map(|(name, ..)| name).collect();
        assert!(!names.iter().any(|name| name.contains("proxy")), "{names:?}");
    }
}
