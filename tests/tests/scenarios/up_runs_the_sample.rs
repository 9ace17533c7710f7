//! `alcazar up` runs the sample, and what it prints is true: the call it calls allowed is allowed, the one it calls
//! denied is denied with a reason, and plaintext is refused.

use std::process::Command;

use alcazar_testkit::{Curl, DEADLINE, Mesh, binary, curl, openssl_s_client, turn, until};

#[test]
fn up_runs_the_sample() {
    let _turn = turn();
    let mut mesh = Mesh::sample().unwrap();
    the_printed_lines_do_what_they_say(&mut mesh);
    a_denial_says_why(&mesh);
    rules_hold_by_method_path_header_and_namespace(&mesh);
    the_server_proves_a_spiffe_id_and_gives_no_ticket(&mesh);
    applications_see_who_calls(&mesh);
    the_agent_of_the_mesh_says_what_it_holds(&mesh);
    it_ends_with_everything_it_started(mesh);
}

fn the_printed_lines_do_what_they_say(mesh: &mut Mesh) {
    mesh.process().wait_for_line("the end of the banner", |line| line.contains("Ctrl-C ends it")).unwrap();
    let log = mesh.log();
    let printed = |word: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(word)).map(str::trim);
        line.unwrap_or_else(|| panic!("no line {word}: {log}")).to_owned()
    };
    let run = |line: &str| {
        let output = Command::new("sh").args(["-c", &format!("{line} -sS -i --max-time 10")]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (ok, allowed) = run(&printed("allowed"));
    assert!(ok && allowed.starts_with("HTTP/1.1 200") && allowed.contains("ratings"), "{allowed}");
    let (ok, denied) = run(&printed("denied"));
    assert!(ok && denied.starts_with("HTTP/1.1 403") && denied.contains("RBAC: access denied"), "{denied}");
    let (ok, refused) = run(&printed("refused"));
    assert!(!ok || refused.starts_with("HTTP/1.1 400") && !refused.contains("ratings"), "plaintext: {refused}");
    let line = |line: &str| line.contains(" refused ") && line.contains("plaintext");
    mesh.process().wait_for_line("the refusal", line).unwrap();
}

fn the_agent_of_the_mesh_says_what_it_holds(mesh: &Mesh) {
    let here = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(mesh.data_dir(), here.path().join(".alcazar")).unwrap();
    let mut status = Command::new(binary("alcazar").unwrap());
    let output = status.args(["agent", "status"]).current_dir(here.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("shop.frontend-v1"), "{output:?}");
}

fn a_denial_says_why(mesh: &Mesh) {
    let nightly = mesh.workload("reports/nightly").unwrap();
    let answer = curl(&nightly.outbound, "http://reviews.shop/ratings").unwrap();
    assert_eq!(answer.code, 403, "{}", answer.text);
    let id = answer.text.lines().find_map(|line| line.strip_prefix("x-alcazar-decision: ")).map(str::trim);
    let id = id.unwrap_or_else(|| panic!("no decision id: {}", answer.text)).to_owned();
    let record = until("the decision in the log", DEADLINE, || {
        mesh.decisions().into_iter().find(|record| record["id"] == id.as_str())
    });
    let record = record.unwrap();
    assert_eq!(record["verdict"], "deny");
    assert_eq!(record["source"]["spiffe_id"], nightly.spiffe_id.as_str());
    let explanation = record["explanation"].as_str().unwrap();
    assert!(explanation.starts_with("denied") && explanation.contains("shop/ratings-"), "{explanation}");
    // The person who watches reads the same words.
    let words = explanation.strip_prefix("denied: ").unwrap();
    until("the reason on the screen", DEADLINE, || mesh.log().contains(words).then_some(())).unwrap();
}

fn rules_hold_by_method_path_header_and_namespace(mesh: &Mesh) {
    let frontend = mesh.workload("shop/frontend-v1").unwrap().outbound;
    let catalog = mesh.workload("shop/catalog-v1").unwrap().outbound;
    let nightly = mesh.workload("reports/nightly").unwrap().outbound;
    let table: [(&str, &[&str], &str, u16); 15] = [
        (&frontend, &[], "http://catalog.shop/items", 200),
        (&frontend, &[], "http://catalog.shop.svc.cluster.local/items", 200),
        (&frontend, &[], "http://catalog/items", 200),
        (&nightly, &[], "http://catalog.shop/items", 200),
        (&nightly, &[], "http://catalog.shop/prices", 403),
        (&catalog, &[], "http://reviews.shop/ratings", 200),
        (&catalog, &["-X", "POST"], "http://reviews.shop/ratings", 403),
        (&frontend, &["-X", "POST"], "http://reviews.shop/ratings", 200),
        (&nightly, &[], "http://reviews.shop/ratings/summary", 200),
        (&nightly, &[], "http://reviews.shop/ratings", 403),
        (&frontend, &["-X", "POST", "-H", "x-confirmed: yes"], "http://payments.shop/charge", 200),
        (&frontend, &["-X", "POST"], "http://payments.shop/charge", 403),
        (&frontend, &[], "http://payments.shop/ledger", 403),
        (&nightly, &[], "http://frontend.shop/", 200),
        (&nightly, &[], "http://nobody.shop/", 502),
    ];
    for (proxy, arguments, url, expected) in table {
        let answer = Curl::default().through(proxy).with(arguments).get(url).unwrap();
        assert_eq!(answer.code, expected, "{arguments:?} {url} through {proxy}: {} {}", answer.text, answer.error);
    }
}

fn the_server_proves_a_spiffe_id_and_gives_no_ticket(mesh: &Mesh) {
    let reviews = mesh.workload("shop/reviews-v1").unwrap();
    let seen = openssl_s_client(&reviews.inbound, &["-showcerts", "-alpn", "alcazar/h2"]).unwrap();
    assert!(seen.contains("TLSv1.3"), "{seen}");
    assert!(!seen.contains("New Session Ticket arrived"), "{seen}");
    let pem =
        seen.split_once("-----BEGIN CERTIFICATE-----").map(|(_, rest)| format!("-----BEGIN CERTIFICATE-----{rest}"));
    let path = mesh.data_dir().join("seen.pem");
    std::fs::write(&path, pem.unwrap_or_else(|| panic!("no certificate: {seen}"))).unwrap();
    let output = Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(&path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("URI:{}", reviews.spiffe_id)), "{text}");
    assert!(text.contains("X509v3 Subject Alternative Name: critical"), "{text}");
}

fn applications_see_who_calls(mesh: &Mesh) {
    let frontend = mesh.workload("shop/frontend-v1").unwrap();
    let answer = curl(&frontend.outbound, "http://catalog.shop/items").unwrap();
    assert!(answer.text.contains(&format!("\"caller\":\"{}\"", frontend.spiffe_id)), "{}", answer.text);
    // What a caller claims about itself is not believed.
    let forged =
        Curl::default().through(&frontend.outbound).with(&["-H", "x-forwarded-client-cert: URI=spiffe://evil/x"]);
    let answer = forged.get("http://catalog.shop/items").unwrap();
    assert!(!answer.text.contains("evil") && answer.text.contains(&frontend.spiffe_id), "{}", answer.text);
}

fn it_ends_with_everything_it_started(mut mesh: Mesh) {
    let pids: Vec<u64> =
        mesh.status().unwrap()["workloads"].as_array().unwrap().iter().filter_map(|one| one["pid"].as_u64()).collect();
    assert_eq!(pids.len(), 5);
    let status = mesh.stop().unwrap();
    assert!(status.success(), "{status}: {}", mesh.log());
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} has outlived the mesh");
    }
    assert!(!mesh.log().contains("still running"), "{}", mesh.log());
}
