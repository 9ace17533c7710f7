//! `docs/envoy.md`, followed from start to end: its files as they stand, but for the ports and the folder of the sockets.

use std::path::Path;
use std::time::Duration;

use alcazar_testkit::{AgentProcess, CaProcess, Curl, DEADLINE, Envoy, HttpOrigin, eventually, free_port};

const PAGE: &str = include_str!("../../../docs/envoy.md");

/// The block of the page that begins with its name.
fn block(name: &str) -> String {
    let mut blocks = PAGE.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks
        .find_map(|block| block.strip_prefix(&format!("# {name}\n")))
        .unwrap_or_else(|| panic!("no {name}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_envoy_page_is_followed() {
    let home = tempfile::tempdir().unwrap();
    let ca = CaProcess::start(home.path(), &block("ca.yaml")).unwrap();
    ca.wait_ready().unwrap();
    let agent = AgentProcess::start(home.path(), &ca, "vm-1").await.unwrap();
    let origin = HttpOrigin::start("reviews").unwrap();
    let (mesh, outbound) = (free_port().unwrap(), free_port().unwrap());
    let here = |name: &str, file: &str| {
        let socket = agent.socket(name).unwrap();
        let replaced = [
            (format!("/run/alcazar/{name}.sock"), socket.display().to_string()),
            ("port_value: 8443}".into(), format!("port_value: {mesh}}}")),
            ("port_value: 9080}".into(), format!("port_value: {outbound}}}")),
            ("port_value: 8080}".into(), format!("port_value: {}}}", origin.port())),
        ];
        let (head, body) = file.split_once('\n').unwrap();
        assert!(head.starts_with("node: "), "the kit has a head of its own");
        replaced.iter().fold(body.to_owned(), |file, (from, to)| file.replace(from, to))
    };
    let start = |folder: &Path, name: &str, file: &str| Envoy::start(folder, name, file).unwrap();
    let Some(server) = start(home.path(), "server", &here("shop.reviews", &block("server.yaml"))) else { return };
    let client = start(home.path(), "client", &here("shop.caller", &block("client.yaml"))).unwrap();
    let get =
        async || Curl::default().get(&format!("http://127.0.0.1:{outbound}/")).is_ok_and(|answer| answer.code == 200);
    eventually("an answer through both", DEADLINE, get)
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", server.log(), client.log()));
    // Who is not the caller is not let in, although of the same trust domain.
    ca.register_as("stranger", "vm-1", "socket:shop.stranger", Duration::ZERO).await.unwrap();
    let strange = here("shop.caller", &block("client.yaml"))
        .replace(
            &agent.socket("shop.caller").unwrap().display().to_string(),
            &agent.socket("shop.stranger").unwrap().display().to_string(),
        )
        .replace(&format!("port_value: {outbound}}}"), &format!("port_value: {}}}", free_port().unwrap()));
    let port: u16 = strange.split("port_value: ").nth(1).unwrap().split('}').next().unwrap().parse().unwrap();
    let _stranger = start(home.path(), "stranger", &strange).unwrap();
    let refused =
        async || Curl::default().get(&format!("http://127.0.0.1:{port}/")).is_ok_and(|answer| answer.code == 503);
    eventually("a refusal", DEADLINE, refused).await.unwrap();
    let answer = Curl::default().get(&format!("http://127.0.0.1:{port}/")).unwrap();
    assert!(answer.text.contains("CERTIFICATE") || answer.text.contains("reset"), "{answer:?}");
}
