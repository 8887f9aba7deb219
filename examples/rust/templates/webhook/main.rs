//! Keeps events that are signed as https://www.standardwebhooks.com says. An event that comes again, from its sender or
//! from somebody who has seen it, is kept once, by its signed id: so there is no need to refuse one for its time.

mod hmac;
mod skerry;

use skerry::{body, sql, Error};
use std::env::var;

/// An error goes to stderr, which is the node's log; it becomes a 502, and the sender sends the event again.
fn main() -> Result<(), Error> {
    let id = var("HTTP_WEBHOOK_ID").unwrap_or_default();
    let body = body();
    let (status, json) = if var("REQUEST_METHOD").as_deref() != Ok("POST") {
        println!("Allow: POST");
        ("405 Method Not Allowed", r#"{"error":"only POST"}"#.into())
    } else if !is_signed(&id, &var("HTTP_WEBHOOK_TIMESTAMP").unwrap_or_default(), &body) {
        ("401 Unauthorized", r#"{"error":"the signature isn't right"}"#.into())
    } else {
        let parameters = [id.as_str().into(), (&*String::from_utf8_lossy(&body)).into()];
        let found =
            sql("INSERT INTO notes (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id", &parameters)?;
        ("200 OK", format!("{{\"stored\":{}}}", !found.rows.is_empty()))
    };
    println!("Status: {status}\nContent-Type: application/json\n\n{json}");
    Ok(())
}

/// Whether one of the signatures in the header is the message's.
fn is_signed(id: &str, time: &str, body: &[u8]) -> bool {
    let secret = var("WEBHOOK_SECRET").unwrap_or_default();
    let key = skerry::decode(secret.trim_start_matches("whsec_"));
    if key.len() < 24 {
        return false; // A secret has 24 to 64 bytes: anybody could guess a short one.
    }
    let right = hmac::sha256(&key, &[format!("{id}.{time}.").as_bytes(), body].concat());
    let signatures = var("HTTP_WEBHOOK_SIGNATURE").unwrap_or_default();
    signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,")).any(|signature| {
        let given = skerry::decode(signature);
        // All bytes are compared: a time that depends on where they differ would tell how to go on.
        given.len() == right.len() && given.iter().zip(right).fold(0, |different, (a, b)| different | (a ^ b)) == 0
    })
}
