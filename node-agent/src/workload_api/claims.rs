use alcazar_api::spiffe::JwtSvid;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

/// All that a token says, as protobuf has JSON. Its numbers are floating: a whole one beyond 2^53 is rounded.
pub(super) fn claims(svid: &JwtSvid) -> Struct {
    let claims = svid.claims();
    let audiences = claims.audiences().iter().cloned().map(serde_json::Value::String).collect();
    let audience = ("aud".to_owned(), value(&serde_json::Value::Array(audiences)));
    let others = claims.iter().map(|(name, claim)| (name.to_owned(), value(claim)));
    Struct { fields: others.chain([audience]).collect() }
}

fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(yes) => Kind::BoolValue(*yes),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(value).collect() }),
        Json::Object(members) => {
            let fields = members.iter().map(|(name, member)| (name.clone(), value(member))).collect();
            Kind::StructValue(Struct { fields })
        }
    };
    Value { kind: Some(kind) }
}
