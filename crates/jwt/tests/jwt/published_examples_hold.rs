//! The examples that the standards print.

use std::time::Duration;

use alcazar_jwt::{Algorithm, Expectations, Issuer, Jwk, Jwks, VerifyError, verify};
use serde_json::json;

use crate::support::at;

const RSA_N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
const RS256: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
const ES256: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
const EDDSA: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
const HS256: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

fn jwk(json: &serde_json::Value) -> Jwk {
    Jwk::from_json(json.as_object().unwrap()).unwrap()
}

/// RFC 7515 appendices A.2 and A.3. The example has no audience, which no expectation here accepts: its signature is good
/// when that alone is what is missing.
#[test]
fn rfc_7515_signatures_are_good() {
    let rsa = jwk(&json!({"kty": "RSA", "n": RSA_N, "e": "AQAB"}));
    let ec = jwk(&json!({
        "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    }));
    let keys: Jwks = [rsa, ec].into_iter().collect();
    for token in [RS256, ES256] {
        let claims = alcazar_jwt::Token::parse(token).unwrap().verify(&keys).unwrap();
        assert_eq!((claims.issuer(), claims.expires()), (Some("joe"), at(1_300_819_380)));
        assert_eq!(claims.get("http://example.com/is_root"), Some(&json!(true)));
        let expected = Expectations {
            audiences: &["ca"],
            issuer: Issuer::Is("joe"),
            now: at(1_300_819_379),
            leeway: Duration::ZERO,
        };
        let error = verify(token, &keys, &expected).unwrap_err();
        assert!(matches!(error, VerifyError::Claims(alcazar_jwt::ClaimsError::Audience { .. })), "{error}");
    }
    assert!(matches!(verify(HS256, &keys, &crate::support::expected(0)), Err(VerifyError::Token(_))));
}

/// RFC 8037 appendices A.3 and A.4: the payload is a sentence, so the key alone is asked.
#[test]
fn rfc_8037_signature_and_thumbprint_are_good() {
    let key = jwk(&json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}));
    assert_eq!(key.key().thumbprint(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    let (signed, signature) = EDDSA.rsplit_once('.').unwrap();
    let signature = {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(signature).unwrap()
    };
    assert!(key.key().verify(Algorithm::EdDsa, signed.as_bytes(), &signature).is_ok());
    assert!(key.key().verify(Algorithm::EdDsa, b"another sentence", &signature).is_err());
    assert!(key.key().verify(Algorithm::Es256, signed.as_bytes(), &signature).is_err());
}

/// RFC 7638 §3.1.
#[test]
fn rfc_7638_thumbprint_is_the_printed_one() {
    let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
    let key = jwk(&json!({"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}));
    assert_eq!(key.key().thumbprint(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
}
