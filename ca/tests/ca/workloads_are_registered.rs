//! A node gets certificates for the workloads that are registered for it, and hears of changes.

use std::time::Duration;

use alcazar_api::{
    ca::v1::{self, administration_client::AdministrationClient, issue_workload_result::Outcome},
    istio::v1::auth::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient},
};
use alcazar_identity::{CertificateDer, SvidLeaf, X509Svid};
use prost_types::{Struct, Value, value::Kind};
use tokio::time::timeout;
use tonic::{Code, Request, Streaming};

use crate::support::{Hands, Served, csr, id, key, node, registration, svid, web};

const PATIENCE: Duration = Duration::from_secs(20);

async fn ids(stream: &mut Streaming<v1::Registrations>) -> Vec<String> {
    let message = timeout(PATIENCE, stream.message()).await.expect("a push").unwrap().expect("a message");
    message.registrations.into_iter().map(|registration| registration.id).collect()
}

async fn issue(served: &Served, of: &X509Svid, items: Vec<(&str, Vec<u8>)>) -> Vec<v1::IssueWorkloadResult> {
    let items = items
        .into_iter()
        .map(|(id, csr)| v1::IssueWorkload { registration_id: id.into(), csr, present_not_after: 0 })
        .collect();
    let reply = served.client(of).issue_workloads(v1::IssueWorkloadsRequest { items }).await.unwrap();
    reply.into_inner().results
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_what_is_registered_for_it_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let one = served.attested(&node("one")).await;
    let batch = id("spiffe://cluster.local/ns/reports/sa/nightly");
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    served.ca.put_registration(registration("reports.nightly", &node("two"), &batch)).await.unwrap();
    let short = alcazar_ca::Registration::new(
        "shop.short".parse().unwrap(),
        node("one"),
        web(),
        ["uid:7".parse().unwrap()],
        Some(Duration::from_secs(30)),
    );
    served.ca.put_registration(short.unwrap()).await.unwrap();

    let keys = [key(), key(), key()];
    let asked = vec![
        ("shop.web", csr(&keys[0])),
        ("reports.nightly", csr(&keys[1])),
        ("nobody", csr(&keys[1])),
        ("../nodes", csr(&keys[1])),
        ("shop.web", b"hello".to_vec()),
        ("shop.short", csr(&keys[2])),
    ];
    let names: Vec<_> = asked.iter().map(|(name, _)| (*name).to_owned()).collect();
    let results = issue(&served, &one, asked).await;
    assert_eq!(results.iter().map(|result| result.registration_id.clone()).collect::<Vec<_>>(), names);
    let codes: Vec<_> = results
        .iter()
        .map(|result| match &result.outcome {
            Some(Outcome::Svid(_)) => None,
            Some(Outcome::Refusal(refusal)) => Some(Code::from_i32(refusal.code)),
            None => panic!("{result:?}"),
        })
        .collect();
    let denied = Some(Code::PermissionDenied);
    assert_eq!(codes, [None, denied, denied, denied, Some(Code::InvalidArgument), None]);
    let Some(Outcome::Svid(issued)) = &results[0].outcome else { panic!() };
    assert_eq!(*svid(issued, &keys[0]).id(), web());
    let Some(Outcome::Svid(issued)) = &results[5].outcome else { panic!() };
    assert_eq!(issued.not_after - issued.issued_at, 30);

    // Everything that left is on record, newest first, with who asked for it.
    let record = served.ca.issued(Some(&web()), 10).await.unwrap();
    assert_eq!(record.len(), 2);
    assert!(record.iter().all(|record| record.caller == node("one").to_string()));
    let too_many = (0..1001).map(|_| v1::IssueWorkload::default()).collect();
    let status = served.client(&one).issue_workloads(v1::IssueWorkloadsRequest { items: too_many }).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_registrations_are_pushed_to_their_node() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let one = served.attested(&node("one")).await;
    let mut stream =
        served.client(&one).watch_registrations(v1::WatchRegistrationsRequest {}).await.unwrap().into_inner();
    assert!(ids(&mut stream).await.is_empty(), "the whole set comes first, though it is empty");

    served.ca.put_registration(registration("b", &node("one"), &web())).await.unwrap();
    assert_eq!(ids(&mut stream).await, ["b"]);
    // Another node's is not pushed: the next thing is our own.
    served.ca.put_registration(registration("x", &node("two"), &web())).await.unwrap();
    served.ca.put_registration(registration("a", &node("one"), &web())).await.unwrap();
    assert_eq!(ids(&mut stream).await, ["a", "b"]);
    // One that goes to another node leaves this one.
    served.ca.put_registration(registration("b", &node("two"), &web())).await.unwrap();
    assert_eq!(ids(&mut stream).await, ["a"]);
    assert!(served.ca.delete_registration(&"a".parse().unwrap()).await.unwrap());
    assert!(!served.ca.delete_registration(&"a".parse().unwrap()).await.unwrap());
    assert!(ids(&mut stream).await.is_empty());

    let mut bundles =
        served.client(&one).watch_trust_bundles(v1::WatchTrustBundlesRequest {}).await.unwrap().into_inner();
    let message = timeout(PATIENCE, bundles.message()).await.unwrap().unwrap().unwrap();
    let bundles: alcazar_identity::TrustBundles = message.try_into().unwrap();
    assert_eq!(bundles, served.ca.trust_bundles());
    // Open streams do not hold up the end.
    served.stop().await;
    assert!(timeout(PATIENCE, stream.message()).await.unwrap().is_ok_and(|message| message.is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_istios_api_gets_a_chain_of_strings() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let one = served.attested(&node("one")).await;
    served.ca.put_registration(registration("shop.web", &node("one"), &web())).await.unwrap();
    let mut client = IstioCertificateServiceClient::new(served.channel(&one));
    let request = |key: &rcgen::KeyPair, seconds, impersonated: Option<&str>| IstioCertificateRequest {
        csr: crate::support::csr_pem(key),
        validity_duration: seconds,
        metadata: impersonated.map(|text| Struct {
            fields: [("ImpersonatedIdentity".to_owned(), Value { kind: Some(Kind::StringValue(text.into())) })].into(),
        }),
    };

    let workload = web().to_string();
    let reply = client.create_certificate(request(&key(), 600, Some(&workload))).await.unwrap().into_inner();
    assert_eq!(reply.cert_chain.len(), 3, "leaf, intermediate, root");
    let parsed: Vec<CertificateDer<'_>> = reply
        .cert_chain
        .iter()
        .map(|pem| rustls_pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap())
        .collect();
    let leaf = SvidLeaf::parse(&parsed[0]).unwrap();
    assert_eq!((leaf.id(), leaf.validity().lifetime()), (&web(), Duration::from_secs(720)));
    assert_eq!(alcazar_identity::Fingerprint::of(&parsed[2]), served.ca.fingerprints().root.fingerprint);

    // Nobody gets by this way what no registration would give: of several for one identity, the longest life counts.
    let job = id("spiffe://cluster.local/ns/shop/sa/job");
    let put = async |name: &str, of, seconds| {
        let (name, selectors) = (name.parse().unwrap(), ["uid:7".parse().unwrap()]);
        let ttl = Some(Duration::from_secs(seconds));
        let registration = alcazar_ca::Registration::new(name, of, job.clone(), selectors, ttl).unwrap();
        served.ca.put_registration(registration).await.unwrap();
    };
    let life = async |seconds| {
        let request = request(&key(), seconds, Some(job.as_str()));
        let reply = client.clone().create_certificate(request).await.unwrap().into_inner();
        let leaf: CertificateDer<'_> =
            rustls_pki_types::pem::PemObject::from_pem_slice(reply.cert_chain[0].as_bytes()).unwrap();
        // It reaches two minutes back.
        SvidLeaf::parse(&leaf).unwrap().validity().lifetime().as_secs() - 120
    };
    put("shop.job", node("one"), 60).await;
    put("shop.job-elsewhere", node("two"), 7200).await;
    assert_eq!([life(86_400).await, life(0).await, life(30).await], [60, 60, 30]);
    put("shop.job-long", node("one"), 300).await;
    assert_eq!([life(86_400).await, life(30).await], [300, 30]);

    let code = async |request| client.clone().create_certificate(request).await.unwrap_err().code();
    assert_eq!(code(request(&key(), 86_401, Some(&workload))).await, Code::InvalidArgument);
    assert_eq!(code(request(&key(), 0, Some("spiffe://cluster.local/ns/shop/sa/other"))).await, Code::PermissionDenied);
    assert_eq!(code(request(&key(), 0, Some("not an identity"))).await, Code::InvalidArgument);
    assert_eq!(
        code(IstioCertificateRequest { csr: "hello".into(), ..request(&key(), 0, None) }).await,
        Code::InvalidArgument
    );
    // A token that nobody can verify never falls through to the certificate.
    let mut with_token = Request::new(request(&key(), 0, Some(&workload)));
    with_token.metadata_mut().insert("authorization", "Bearer abc".parse().unwrap());
    assert_eq!(client.clone().create_certificate(with_token).await.unwrap_err().code(), Code::Unauthenticated);

    // For itself, a node renews.
    let next = key();
    let reply = client.create_certificate(request(&next, 0, None)).await.unwrap().into_inner();
    let leaf: CertificateDer<'_> =
        rustls_pki_types::pem::PemObject::from_pem_slice(reply.cert_chain[0].as_bytes()).unwrap();
    assert_eq!(*SvidLeaf::parse(&leaf).unwrap().id(), node("one"));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_works_over_a_private_socket() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), &Hands::new()).await;
    let socket = served.ca.admin_socket();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(folder.path())), (0o600, 0o700));
    let mut operator = AdministrationClient::connect(format!("unix:{}", socket.display())).await.unwrap();

    let request = v1::CreateJoinTokenRequest { node_id: node("one").to_string(), ttl: 60, kubernetes_node: false };
    let token = operator.create_join_token(request).await.unwrap().into_inner();
    assert_eq!(token.expires_at, crate::support::START as i64 + 60);
    served.attest(&token.token, &key()).await.unwrap();
    let message = v1::Registration {
        id: "shop.web".into(),
        node_id: node("one").to_string(),
        spiffe_id: web().to_string(),
        selectors: vec!["socket:shop.web".into()],
        ttl: 60,
        ..v1::Registration::default()
    };
    operator.put_registration(message.clone()).await.unwrap();
    assert_eq!(
        operator.list_registrations(v1::ListRegistrationsRequest::default()).await.unwrap().into_inner().registrations,
        vec![message.clone()]
    );
    let hierarchy = operator.get_hierarchy(v1::GetHierarchyRequest {}).await.unwrap().into_inner();
    assert_eq!(hierarchy.root.unwrap().certificate, served.ca.fingerprints().root.certificate.to_vec());

    // The operator is told what is wrong.
    let wrong = |change: fn(&mut v1::Registration)| {
        let mut message = message.clone();
        change(&mut message);
        message
    };
    for (bad, why) in [
        (wrong(|m| m.node_id = web().to_string()), "not the identity of a node"),
        (wrong(|m| m.spiffe_id = "spiffe://other/ns/a/sa/b".into()), "different trust domains"),
        (wrong(|m| m.spiffe_id = "spiffe://cluster.local/ns/alcazar-system/sa/alcazar-ca".into()), "knows the CA"),
        (wrong(|m| m.spiffe_id = "spiffe://cluster.local".into()), "has no path"),
        (wrong(|m| m.spiffe_id = m.node_id.clone()), "is the identity of a node"),
        (wrong(|m| m.node_id = "spiffe://cluster.local/node/west/one".into()), "not a node of the cluster local"),
        (wrong(|m| m.selectors = vec!["socket:Shop_Web".into()]), "cannot be a socket's selector"),
        (wrong(|m| m.selectors = vec!["socket:agent".into()]), "cannot be a socket's selector"),
        (wrong(|m| m.selectors = vec!["pid:7".into()]), "is not a selector"),
        (wrong(|m| m.id = "a b".into()), "not a registration's name"),
        (wrong(|m| m.ttl = 86_401), "longer than the profile's longest"),
    ] {
        let status = operator.put_registration(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(why), "{}", status.message());
    }
    for bad in
        [web().to_string(), "spiffe://cluster.local/node/west/one".into(), "spiffe://other/node/local/one".into()]
    {
        let request = v1::CreateJoinTokenRequest { node_id: bad.clone(), ttl: 0, kubernetes_node: false };
        assert_eq!(operator.create_join_token(request).await.unwrap_err().code(), Code::InvalidArgument, "{bad}");
    }
    operator.delete_registration(v1::DeleteRegistrationRequest { id: "shop.web".into() }).await.unwrap();
    let again = operator.delete_registration(v1::DeleteRegistrationRequest { id: "shop.web".into() }).await;
    assert_eq!(again.unwrap_err().code(), Code::NotFound);
    served.stop().await;
}

#[tokio::test]
async fn a_profile_says_which_keys_lives_and_names_a_registration_has() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = alcazar_ca::Config::new(folder.path().join("ca"));
    let web_profile = alcazar_ca::ProfileConfig {
        keys: Some(vec![alcazar_ca::KeyKind::P384]),
        max_ttl: Some(Duration::from_secs(300)),
        dns_names: vec![alcazar_ca::AllowedNamesConfig {
            identities: vec!["shop/*".into()],
            names: vec!["{account}.{namespace}.svc".into()],
        }],
        ..alcazar_ca::ProfileConfig::default()
    };
    config.profiles.insert("web".into(), web_profile);
    let served = Served::start_with(config, &Hands::new()).await;
    let one = node("one");
    let svid = served.attested(&one).await;
    let with = |profile: &str, name: &str| {
        let registration = registration("shop.web", &one, &web()).with_profile(Some(profile.into())).unwrap();
        registration.with_dns_names([name.parse().unwrap()]).unwrap()
    };
    for (profile, name, expected) in [
        ("api", "web.shop.svc", "no profile \"api\""),
        ("web", "web.bank.svc", "does not allow the DNS name web.bank.svc"),
        ("", "web.shop.svc", "does not allow the DNS name web.shop.svc"),
    ] {
        let error = served.ca.put_registration(with(profile, name)).await.unwrap_err();
        let text = alcazar_service::process::chain(&error);
        assert!(text.contains(expected), "{text}");
    }
    served.ca.put_registration(with("web", "web.shop.svc")).await.unwrap();

    let weak = issue(&served, &svid, vec![("shop.web", csr(&key()))]).await;
    let Some(Outcome::Refusal(refusal)) = &weak[0].outcome else { panic!("{weak:?}") };
    assert_eq!((refusal.code, refusal.message.as_str()), (3, "certificate request refused"));
    let strong = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    // The request asks for another name; who is registered for which counts.
    let request = rcgen::CertificateParams::new(vec!["bank.example".into()]).unwrap();
    let request = request.serialize_request(&strong).unwrap().der().to_vec();
    let issued = issue(&served, &svid, vec![("shop.web", request)]).await;
    let Some(Outcome::Svid(issued)) = &issued[0].outcome else { panic!("{issued:?}") };
    assert_eq!(issued.not_after - issued.issued_at, 300);
    use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(
        **names,
        [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web"), GeneralName::DNSName("web.shop.svc")]
    );
    served.stop().await;
}
