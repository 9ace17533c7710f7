use std::time::{Duration, SystemTime};

use alcazar_api::ca::v1;
use alcazar_identity::{CertificateDer, Crl, CrlError, TrustBundle, verify_crl};
use alcazar_service::process::chain;

/// What comes of what the CA says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// These are served until then.
    Served { crls: Vec<Crl>, until: SystemTime },
    /// None is; why, and whether anything is wrong.
    Withheld { reason: String, wrong: bool },
}

/// Whether CRLs may be shown to who refuses everybody of whose issuer there is none: all that there must be are here and good.
pub(super) fn judge(said: &v1::Crls, bundle: &TrustBundle, now: SystemTime) -> Verdict {
    if !said.complete {
        return Verdict::Withheld { reason: format!("the CA says: {}", said.reason), wrong: !said.by_setup };
    }
    let mut crls = Vec::with_capacity(said.crls.len());
    for one in &said.crls {
        let issuers: Vec<_> = one.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
        match verify_crl(&one.crl, &issuers, bundle, now) {
            // Nothing that its issuer signed is good any more: nobody else is to lose theirs because of it.
            Ok(crl) if one.last && crl.good_until() <= now + MARGIN => {}
            Ok(crl) => crls.push(crl),
            // Of a root that is not trusted yet, or no more: nobody takes its certificates with a CRL either.
            Err(error) if error.is_of_nobody() => {}
            Err(CrlError::NotGood { good_until, .. }) if one.last && good_until <= now => {}
            Err(error) => return Verdict::Withheld { reason: why(&error), wrong: true },
        }
    }
    let Some(end) = crls.iter().map(Crl::good_until).min() else {
        return Verdict::Withheld { reason: "none is of an authority that is trusted here".into(), wrong: true };
    };
    // Whoever has them is told beforehand: who checks by one that is over refuses everybody.
    let until = end - MARGIN;
    if until <= now {
        let reason = format!("one is over at {}, and the CA has said no newer one", alcazar_identity::rfc3339(end));
        return Verdict::Withheld { reason, wrong: true };
    }
    Verdict::Served { crls, until }
}

fn why(error: &CrlError) -> String {
    format!("one of them is not good: {}", chain(error))
}

/// How long before the end of one all are taken back.
const MARGIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
        KeyPair, KeyUsagePurpose, SerialNumber,
    };

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + second)
    }

    fn authority(above: Option<&Authority>) -> Authority {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, if above.is_some() { "intermediate" } else { "root" });
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (at(0).into(), at(10_000).into());
        let key = KeyPair::generate().unwrap();
        match above {
            Some(root) => Authority::signed_by(params, key, root).unwrap(),
            None => Authority::self_signed(params, key).unwrap(),
        }
    }

    fn crl(issuer: &Authority, until: u64) -> v1::Crl {
        let params = CertificateRevocationListParams {
            this_update: at(0).into(),
            next_update: at(until).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        v1::Crl {
            crl: params.signed_by(issuer).unwrap().der().to_vec(),
            chain: vec![issuer.der().to_vec()],
            last: false,
        }
    }

    #[test]
    fn all_are_served_or_none() {
        let (root, next_root) = (authority(None), authority(None));
        let (one, two, next) = (authority(Some(&root)), authority(Some(&root)), authority(Some(&next_root)));
        let bundle = |roots: &[&Authority]| {
            TrustBundle::new("td".parse().unwrap(), 1, roots.iter().map(|root| root.der().clone())).unwrap()
        };
        let own = bundle(&[&root]);
        let said = |crls: &[&v1::Crl]| v1::Crls {
            crls: crls.iter().map(|crl| (*crl).clone()).collect(),
            complete: true,
            ..v1::Crls::default()
        };
        let served = |said: &v1::Crls, bundle: &TrustBundle, now| match judge(said, bundle, at(now)) {
            Verdict::Served { crls, until } => Ok((crls.len(), until)),
            Verdict::Withheld { reason, wrong } => Err((reason, wrong)),
        };
        let (early, late, after) = (crl(&one, 1_000), crl(&two, 2_000), crl(&next, 500));
        assert_eq!(served(&said(&[&early, &late]), &own, 10), Ok((2, at(940))));
        // One whose root is not trusted yet counts from when it is.
        let three = said(&[&early, &late, &after]);
        assert_eq!(served(&three, &own, 10), Ok((2, at(940))));
        assert_eq!(served(&three, &bundle(&[&root, &next_root]), 10), Ok((3, at(440))));
        assert_eq!(served(&three, &bundle(&[&next_root]), 10), Ok((1, at(440))));
        // They are taken back before the first of them is over.
        assert!(served(&said(&[&early, &late]), &own, 939).is_ok());
        for now in [940, 999, 1_000, 3_000] {
            let (reason, wrong) = served(&said(&[&early, &late]), &own, now).unwrap_err();
            assert!(wrong, "{now}: {reason}");
        }
        // A last one goes by itself; the others are served on.
        let last = v1::Crl { last: true, ..early.clone() };
        for (now, expected) in
            [(10, (2, 940)), (939, (2, 940)), (940, (1, 1_940)), (1_000, (1, 1_940)), (1_939, (1, 1_940))]
        {
            assert_eq!(served(&said(&[&last, &late]), &own, now), Ok((expected.0, at(expected.1))), "{now}");
        }
        assert!(served(&said(&[&last, &late]), &own, 1_940).is_err());
        assert!(served(&said(&[&last]), &own, 940).unwrap_err().1, "with none at all nothing is checked");
        // By a clock that is behind one is not good yet, or its issuer is not.
        let before = |said: &v1::Crls| match judge(said, &own, at(0) - Duration::from_secs(1)) {
            Verdict::Withheld { reason, wrong: true } => reason,
            verdict => panic!("{verdict:?}"),
        };
        assert!(before(&said(&[&late])).starts_with("one of them is not good: "));
        // One that is not good spoils all.
        let forged = v1::Crl { chain: vec![two.der().to_vec()], ..early.clone() };
        let damaged = v1::Crl { crl: b"\x30\x00".to_vec(), ..early.clone() };
        let unsigned = v1::Crl { chain: Vec::new(), ..early.clone() };
        for bad in [forged, damaged, unsigned] {
            let (reason, wrong) = served(&said(&[&late, &bad]), &own, 10).unwrap_err();
            assert!(wrong && reason.starts_with("one of them is not good: "), "{reason}");
        }
        // The CA's own word, and nothing at all.
        assert!(served(&said(&[]), &own, 10).unwrap_err().1);
        for (by_setup, wrong) in [(false, true), (true, false)] {
            let none = v1::Crls { crls: vec![early.clone()], complete: false, reason: "west".into(), by_setup };
            assert_eq!(served(&none, &own, 10), Err(("the CA says: west".into(), wrong)));
        }
    }
}
