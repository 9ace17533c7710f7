//! Certificates are replaced while requests flow, and no request fails for it.

use std::time::Duration;

use alcazar_testkit::{HttpOrigin, Load, Mesh, turn, until};

/// Several lives of the short certificates below.
const DEADLINE: Duration = Duration::from_secs(90);

#[test]
fn certificates_rotate_under_load_without_a_failed_request() {
    let _turn = turn();
    let origin = HttpOrigin::start("reviews").unwrap();
    let mesh = format!(
        "certificates: {{ttl: 10s}}
workloads:
- name: reviews
  namespace: shop
  serviceAccount: reviews
  address: 127.0.0.1
  ports: [{{name: http, number: {port}, protocol: HTTP}}]
- name: caller
  namespace: shop
  serviceAccount: caller
  address: 127.0.0.1
services:
- name: reviews
  namespace: shop
  selector: {{app: reviews}}
  ports: [{{name: http, port: 80, targetPort: {port}, protocol: HTTP}}]
",
        port = origin.port()
    );
    let mesh = mesh.replacen("serviceAccount: reviews", "serviceAccount: reviews\n  labels: {app: reviews}", 1);
    let mesh = Mesh::of(&mesh, &[]).unwrap();
    let caller = mesh.workload("shop/caller").unwrap();
    let many = Load::start(&caller.outbound, "http://reviews.shop/many", 4, 10).unwrap();
    let one = Load::start(&caller.outbound, "http://reviews.shop/one", 2, u32::MAX).unwrap();

    // Each side changes its certificate twice.
    for name in ["shop/reviews", "shop/caller"] {
        let mut seen = vec![mesh.workload(name).unwrap().serial];
        until("a third certificate", DEADLINE, || {
            let serial = mesh.workload(name).ok()?.serial;
            if seen.last() != Some(&serial) {
                seen.push(serial);
            }
            (seen.len() >= 3).then_some(())
        })
        .unwrap();
    }
    // What was accepted under the old certificates is still served.
    let (so_far_many, so_far_one) = (many.answered(), one.answered());
    until("more answers", DEADLINE, || {
        (many.answered() > so_far_many + 20 && one.answered() > so_far_one + 20).then_some(())
    })
    .unwrap();
    assert!(many.finish().unwrap() > 100);
    assert!(one.finish().unwrap() > 100);
    assert!(mesh.log().contains("rotated"), "{}", mesh.log());
}
