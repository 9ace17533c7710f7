//! Saving a policy file changes who may call what, at once, and closes only what it forbids.

use std::fs;
use std::time::{Duration, Instant};

use alcazar_testkit::{DEADLINE, EchoServer, HttpOrigin, Load, Mesh, Tunnel, curl, turn, until};

const RBAC_ON: &str = "apiVersion: rbac.istio.io/v1alpha1
kind: ClusterRbacConfig
metadata: {name: default}
spec: {mode: 'ON'}
";

/// Lets the namespace `shop` call the services, and `reports` only these paths of reviews.
fn roles(paths: &str, database: &str) -> String {
    format!(
        "apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {{name: all, namespace: shop}}
spec: {{rules: [{{services: ['*']}}]}}
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {{name: shop, namespace: shop}}
spec:
  roleRef: {{kind: ServiceRole, name: all}}
  subjects: [{{properties: {{source.namespace: shop}}}}]
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {{name: some, namespace: shop}}
spec: {{rules: [{{services: ['reviews.shop.svc.cluster.local'], paths: ['{paths}']}}]}}
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRole
metadata: {{name: database, namespace: shop}}
spec: {{rules: [{{services: ['{database}.shop.svc.cluster.local']}}]}}
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {{name: reports, namespace: shop}}
spec:
  roleRef: {{kind: ServiceRole, name: some}}
  subjects: [{{properties: {{source.namespace: reports}}}}]
---
apiVersion: rbac.istio.io/v1alpha1
kind: ServiceRoleBinding
metadata: {{name: reports-database, namespace: shop}}
spec:
  roleRef: {{kind: ServiceRole, name: database}}
  subjects: [{{properties: {{source.namespace: reports}}}}]
"
    )
}

#[test]
fn a_policy_edit_takes_effect_within_a_second() {
    let _turn = turn();
    let (origin, database) = (HttpOrigin::start("reviews").unwrap(), EchoServer::start().unwrap());
    let mesh = format!(
        "policies: ./policies
workloads:
- {{name: reviews, namespace: shop, serviceAccount: reviews, address: 127.0.0.1, ports: [{{name: http, number: {http}, protocol: HTTP}}]}}
- {{name: db, namespace: shop, serviceAccount: db, address: 127.0.0.1, ports: [{{name: db, number: {db}, protocol: TCP}}]}}
- {{name: caller, namespace: shop, serviceAccount: caller, address: 127.0.0.1}}
- {{name: nightly, namespace: reports, serviceAccount: nightly, address: 127.0.0.1}}
",
        http = origin.port(),
        db = database.port()
    );
    let mesh = Mesh::of(&mesh, &[("rbac.yaml", RBAC_ON), ("roles.yaml", &roles("/totals", "db"))]).unwrap();
    let caller = mesh.workload("shop/caller").unwrap();
    let nightly = mesh.workload("reports/nightly").unwrap();
    let url = |path: &str| format!("http://reviews.shop:{}{path}", origin.port());
    let edit = |text: &str| fs::write(mesh.policies().join("roles.yaml"), text).unwrap();
    let code = |path: &str| curl(&nightly.outbound, &url(path)).unwrap().code;
    assert_eq!((code("/totals"), code("/details")), (200, 403));

    // Allowed all the time: neither a request nor a connection may suffer.
    let load = Load::start(&caller.outbound, &url("/"), 2, u32::MAX).unwrap();
    let mut kept = Tunnel::open(&caller.outbound, &format!("db.shop:{}", database.port())).unwrap();
    let mut forbidden_later = Tunnel::open(&nightly.outbound, &format!("db.shop:{}", database.port())).unwrap();
    kept.echo().unwrap();
    forbidden_later.echo().unwrap();

    edit(&roles("/details", "nothing"));
    let start = Instant::now();
    until("the new rule", DEADLINE, || (code("/details") == 200 && code("/totals") == 403).then_some(())).unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "it took {took:?}");
    // A connection that the new policy forbids is closed; one that stays allowed is not.
    forbidden_later.closed().unwrap();
    kept.echo().unwrap();

    // A bad edit is shown with its place, and what was good stays.
    edit(&roles("/totals", "db").replace("rules:", "ruls:"));
    until("the caret", DEADLINE, || {
        let log = mesh.log();
        (log.contains("roles.yaml:4:8") && log.contains("`rules`")).then_some(())
    })
    .unwrap();
    assert_eq!((code("/totals"), code("/details")), (403, 200));

    edit(&roles("/totals", "db"));
    until("the old rule again", DEADLINE, || (code("/totals") == 200 && code("/details") == 403).then_some(()))
        .unwrap();
    kept.echo().unwrap();
    assert!(load.finish().unwrap() > 20);
}
