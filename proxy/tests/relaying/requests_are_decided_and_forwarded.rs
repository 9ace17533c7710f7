use http::Request;

use crate::common::app::App;
use crate::common::client::{self, Client, get};
use crate::common::{FRONTEND, Mesh, REVIEWS, Wanted, policy};

#[tokio::test]
async fn an_allowed_request_reaches_the_application_with_the_callers_identity() {
    let app =
        App::start(&[("x-app", "1"), ("connection", "x-hop"), ("x-hop", "1"), ("x-alcazar-decision", "forged")]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let mut client = Client::new(mesh.outbound()).await;
    let request = get(
        "http://reviews.shop/a/./b/../c%7e?q=1",
        &[
            ("x-mine", "kept"),
            ("connection", "keep-alive, x-secret-hop"),
            ("x-secret-hop", "gone"),
            ("proxy-connection", "keep-alive"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("proxy-authorization", "Basic eA=="),
            ("x-forwarded-client-cert", "By=spiffe://td/ns/evil/sa/evil;URI=spiffe://td/ns/admin/sa/admin"),
        ],
    );
    let response = client.send(request).await;
    assert_eq!((response.status().as_u16(), &response.body()[..]), (200, &b"hello"[..]));
    assert_eq!(response.headers()["x-app"], "1");
    for gone in ["x-hop", "x-alcazar-decision"] {
        assert!(!response.headers().contains_key(gone), "{gone}");
    }

    let seen = app.last();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/a/c~?q=1"));
    assert_eq!(seen.headers["host"], "reviews.shop");
    assert_eq!(seen.headers["x-mine"], "kept");
    for gone in ["connection", "x-secret-hop", "proxy-connection", "keep-alive", "te", "proxy-authorization"] {
        assert!(!seen.headers.contains_key(gone), "{gone}: {seen:?}");
    }
    let values: Vec<_> = seen.headers.get_all("x-forwarded-client-cert").iter().collect();
    let leaf = mesh.frontend.credentials.borrow().svid().chain()[0].clone();
    let hash = alcazar_identity::Fingerprint::of(&leaf);
    assert_eq!(values, [format!("By={REVIEWS};Hash={hash};URI={FRONTEND}").as_str()]);
    mesh.stop().await;
}

#[tokio::test]
async fn a_denied_request_gets_an_id_and_the_log_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("decisions.jsonl");
    let app = App::start(&[]).await;
    let wanted = Wanted {
        policy: policy::allow(FRONTEND, "/open/*"),
        decision_log: Some(log.clone()),
        ..Wanted::new(app.address)
    };
    let mesh = Mesh::start(&wanted);
    let mut client = Client::new(mesh.outbound()).await;
    assert_eq!(client.get("http://reviews.shop/open/door").await.status(), 200);
    let mut ids = Vec::new();
    for path in ["/closed", "/open/../closed", "/open/%2e%2e/closed", "//closed"] {
        let denied = client.get(&format!("http://reviews.shop{path}")).await;
        assert_eq!(denied.status(), 403, "{path}");
        assert_eq!(&denied.body()[..], b"RBAC: access denied");
        ids.push(denied.headers()["x-alcazar-decision"].to_str().unwrap().to_owned());
    }
    // What servers differ on is refused before anything is decided.
    for path in ["/open/..%2fclosed", "/open/a%00", "/open/..;/closed"] {
        assert_eq!(client.get(&format!("http://reviews.shop{path}")).await.status(), 400, "{path}");
    }
    assert_eq!(app.count(), 1);
    mesh.stop().await;

    let text = std::fs::read_to_string(log).unwrap();
    let records: Vec<alcazar_policy::DecisionRecord> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 5);
    let denied: Vec<_> = records[1..].iter().map(|record| record.id.clone()).collect();
    assert_eq!(denied, ids);
    assert_eq!(records[1].source.spiffe_id.as_deref(), Some(FRONTEND));
    assert_eq!(records[1].destination.port, app.address.port());
    assert!(records[1].explanation.contains("/closed"), "{}", records[1].explanation);
    assert_eq!(records[2].request.path.as_deref(), Some("/closed"));
}

#[tokio::test]
async fn the_mesh_is_closed() {
    let app = App::start(&[]).await;
    let elsewhere = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let mut client = Client::new(mesh.outbound()).await;
    for (url, status, why) in [
        ("http://reviews.shop/", 200, "hello"),
        ("http://reviews/", 200, "hello"),
        ("http://REVIEWS.shop.svc.td.:80/", 200, "hello"),
        (
            "http://reviews.shop:81/",
            502,
            "outbound proxy of shop/frontend-v1: reviews.shop:81: the service reviews.shop has no port 81\n",
        ),
        (
            "http://example.com/",
            502,
            "outbound proxy of shop/frontend-v1: example.com: the mesh has no service \"example.com\"\n",
        ),
        (&format!("http://{}/", elsewhere.address), 502, "the mesh has no service"),
        ("https://reviews.shop/", 400, "the scheme \"https\" is not served; use http\n"),
        ("http://me@reviews.shop/", 400, "the authority contains user information"),
    ] {
        let response = client.get(url).await;
        let body = String::from_utf8(response.body().to_vec()).unwrap();
        assert_eq!(response.status(), status, "{url}: {body}");
        assert!(body.contains(why), "{url}: {body}");
        assert!(!response.headers().contains_key("x-alcazar-decision"));
    }
    assert_eq!(elsewhere.count(), 0);
    mesh.stop().await;
}

#[tokio::test]
async fn old_clients_and_origin_form_are_served() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let ask = |request: &'static str| client::raw(mesh.outbound(), request.as_bytes());
    let old = ask("GET http://reviews.shop/old HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200") || old.starts_with("HTTP/1.1 200"), "{old}");
    assert!(old.ends_with("hello"), "{old}");
    let origin = ask("GET /origin HTTP/1.1\r\nHost: reviews.shop\r\nConnection: close\r\n\r\n").await;
    assert!(origin.starts_with("HTTP/1.1 200") && origin.ends_with("hello"), "{origin}");
    // The absolute target overrides Host (RFC 9112 §3.2.2).
    let both = ask("GET http://reviews.shop/both HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n").await;
    assert!(both.starts_with("HTTP/1.1 200"), "{both}");
    assert_eq!(app.last().headers["host"], "reviews.shop");
    let pipelined = ask(
        "GET http://reviews.shop/1 HTTP/1.1\r\nHost: a\r\n\r\nPOST http://reviews.shop/2 HTTP/1.1\r\nHost: a\r\n\
         Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET http://reviews.shop/3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(pipelined.matches("HTTP/1.1 200").count(), 3, "{pipelined}");
    let seen = app.seen.lock().unwrap().clone();
    let last: Vec<_> = seen.iter().rev().take(3).rev().map(|s| (s.target.as_str(), &s.body[..])).collect();
    assert_eq!(last, [("/1", &b""[..]), ("/2", b"abc"), ("/3", b"")]);
    mesh.stop().await;
}

#[tokio::test]
async fn http2_in_clear_is_multiplexed() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let stream = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    let sender = client::h2(stream).await;
    let asked = (0..50).map(|n| {
        let request = Request::get(format!("http://reviews.shop/{n}")).body(()).unwrap();
        client::h2_get(&sender, request)
    });
    for (status, body) in futures::future::join_all(asked).await {
        assert_eq!((status, body.as_str()), (200, "hello"));
    }
    let differs = Request::get("http://reviews.shop/").header("host", "example.com").body(()).unwrap();
    assert_eq!(client::h2_get(&sender, differs).await.0, 400);
    drop(sender);
    mesh.stop().await;
}

#[tokio::test]
async fn an_application_that_is_away_is_named() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mesh = Mesh::start(&Wanted::new(gone));
    let response = Client::new(mesh.outbound()).await.get("http://reviews.shop/").await;
    assert_eq!(response.status(), 503);
    let body = String::from_utf8(response.body().to_vec()).unwrap();
    assert!(
        body.starts_with("inbound proxy of shop/reviews-v1: the application does not accept connections"),
        "{body}"
    );
    mesh.stop().await;
}

#[tokio::test]
async fn responses_without_a_body_and_expectations_pass() {
    let app = crate::common::app::tcp(async |mut stream: tokio::net::TcpStream| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let head = client::read_head(&mut stream).await;
            let answer: &[u8] = match head.split(' ').next().unwrap() {
                "HEAD" => b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
                "DELETE" => b"HTTP/1.1 204 No Content\r\n\r\n",
                "GET" => b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"x\"\r\n\r\n",
                "PUT" => {
                    let mut body = [0; 4];
                    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
                    stream.read_exact(&mut body).await.unwrap();
                    assert_eq!(&body, b"body");
                    b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
                }
                other => panic!("{other}"),
            };
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let mesh = Mesh::start(&Wanted::new(app));
    let mut client = Client::new(mesh.outbound()).await;
    for (method, status) in [("HEAD", 200), ("DELETE", 204), ("GET", 304), ("HEAD", 200)] {
        let mut request = get("http://reviews.shop/", &[]);
        *request.method_mut() = method.parse().unwrap();
        let response = client.send(request).await;
        assert_eq!((response.status().as_u16(), response.body().len()), (status, 0), "{method}");
        if method == "HEAD" {
            assert_eq!(response.headers()["content-length"], "1000");
        }
    }
    let mut stream = tokio::net::TcpStream::connect(mesh.outbound()).await.unwrap();
    let head = "PUT http://reviews.shop/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    assert!(client::read_head(&mut stream).await.starts_with("HTTP/1.1 100 "));
    let answer = client::raw_over(&mut stream, b"body").await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    mesh.stop().await;
}

#[tokio::test]
async fn a_known_method_in_another_case_is_refused_before_it_is_decided() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted::new(app.address));
    let connected = client::mesh(mesh.reviews.addresses.inbound, mesh.ca.credentials(FRONTEND), &[b"alcazar/h2"]).await;
    let sender = client::h2(connected.stream).await;
    for (method, status) in [("DELETE", 200), ("delete", 400), ("Delete", 400), ("connect", 400), ("purge", 200)] {
        let request = Request::builder().method(method).uri("http://reviews.shop/").body(()).unwrap();
        let (direct, why) = client::h2_get(&sender, request).await;
        assert_eq!(direct, status, "{method}: {why}");
        let request =
            format!("{method} http://reviews.shop/ HTTP/1.1\r\nHost: reviews.shop\r\nConnection: close\r\n\r\n");
        let answer = client::raw(mesh.outbound(), request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method}: {answer}");
    }
    assert_eq!(app.count(), 4);
    drop(sender);
    mesh.stop().await;
}

#[tokio::test]
async fn our_own_answers_say_how_long_they_are() {
    let app = App::start(&[]).await;
    let mesh = Mesh::start(&Wanted { policy: policy::allow(FRONTEND, "/open"), ..Wanted::new(app.address) });
    for (request, status) in [
        ("GET http://reviews.shop/closed", "403"),
        // The same answer without its body.
        ("HEAD http://reviews.shop/closed", "403"),
        ("GET http://reviews.shop/a%2fb", "400"),
        ("GET http://nowhere.shop/", "502"),
    ] {
        let is_head = request.starts_with("HEAD");
        let request = format!("{request} HTTP/1.1\r\nHost: reviews.shop\r\nConnection: close\r\n\r\n");
        let answer = client::raw(mesh.outbound(), request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = if is_head { 19 } else { body.len() };
        assert!(head.contains(&format!("content-length: {length}")), "{answer}");
        assert!(!head.contains("transfer-encoding") && is_head == body.is_empty(), "{answer}");
    }
    mesh.stop().await;
}

#[tokio::test]
async fn a_flood_of_denials_is_denied_in_full_and_explained_in_part() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("decisions.jsonl");
    let app = App::start(&[]).await;
    let wanted = Wanted {
        policy: policy::allow(FRONTEND, "/open"),
        decision_log: Some(log.clone()),
        ..Wanted::new(app.address)
    };
    let mesh = Mesh::start(&wanted);
    // Many at a time, so that they are more than are explained however slow the machine is.
    let connected = client::mesh(mesh.reviews.addresses.inbound, mesh.ca.credentials(FRONTEND), &[b"alcazar/h2"]).await;
    let sender = client::h2(connected.stream).await;
    let closed = || Request::get("http://reviews.shop/closed").body(()).unwrap();
    for _ in 0..30 {
        let flood = futures::future::join_all((0..50).map(|_| client::h2_get(&sender, closed()))).await;
        assert!(flood.iter().all(|(status, _)| *status == 403));
    }
    drop(sender);
    mesh.stop().await;
    let text = std::fs::read_to_string(log).unwrap();
    let records: Vec<alcazar_policy::DecisionRecord> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.len(), 1500);
    let (explained, left_out): (Vec<_>, Vec<_>) = records.iter().partition(|record| record.nearest_miss.is_some());
    assert!(explained.len() >= 200 && !left_out.is_empty(), "{}", explained.len());
    for record in left_out {
        assert!(record.explanation.contains("too many denials"), "{record:?}");
        assert_eq!((record.request.path.as_deref(), app.count()), (Some("/closed"), 0));
    }
}
