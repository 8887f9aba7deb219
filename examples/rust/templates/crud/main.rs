//! Notes as JSON: GET / lists them, POST / creates one; GET, PUT and DELETE /ID read, replace and delete one.
//! SQLite reads the request's JSON and makes the answer's. All SQL of one call is one transaction.

mod skerry;

use skerry::{body, sql, Error, Value};
use std::env::var;

const LIST: &str = "SELECT json_group_array(NOTE) FROM (SELECT * FROM notes ORDER BY id)";
const READ: &str = "SELECT NOTE FROM notes WHERE id = ?1";
const CREATE: &str =
    "INSERT INTO notes (title, text) VALUES (?1 ->> 'title', coalesce(?1 ->> 'text', '')) RETURNING NOTE";
const REPLACE: &str =
    "UPDATE notes SET title = ?2 ->> 'title', text = coalesce(?2 ->> 'text', '') WHERE id = ?1 RETURNING NOTE";
const DELETE: &str = "DELETE FROM notes WHERE id = ?1 RETURNING NOTE";
const NOTE: &str = "json_object('id', id, 'title', title, 'text', text)";
/// CASE, as SQLite would fail on a text that isn't JSON.
const VALID: &str = "SELECT CASE WHEN json_valid(?1) THEN json_type(?1, '$.title') IS 'text'
    AND length(?1 ->> 'title') BETWEEN 1 AND 100 AND coalesce(json_type(?1, '$.text'), 'text') = 'text' ELSE 0 END";
const INVALID: &str = r#"{"error":"send JSON: a title of 1 to 100 characters, and a text if there is one"}"#;

/// An error goes to stderr, which is the node's log; it undoes what the call wrote, and the answer is a 502.
fn main() -> Result<(), Error> {
    let (method, path) = (var("REQUEST_METHOD").unwrap_or_default(), var("PATH_INFO").unwrap_or_default());
    let id = path.trim_start_matches('/');
    let note = String::from_utf8_lossy(&body()).into_owned();
    let (status, found) = match (method.as_str(), id.is_empty()) {
        ("POST", true) | ("PUT", false) if cell(VALID, &[&note])? != Some(Value::Integer(1)) => {
            ("400 Bad Request", Some(INVALID.into()))
        }
        ("GET", true) => ("200 OK", cell(LIST, &[])?),
        ("POST", true) => ("201 Created", cell(CREATE, &[&note])?),
        ("GET", false) => ("200 OK", cell(READ, &[id])?),
        ("PUT", false) => ("200 OK", cell(REPLACE, &[id, &note])?),
        ("DELETE", false) => ("200 OK", cell(DELETE, &[id])?),
        (_, all) => {
            println!("Allow: {}", if all { "GET, POST" } else { "GET, PUT, DELETE" });
            ("405 Method Not Allowed", Some(r#"{"error":"not by this method"}"#.into()))
        }
    };
    let (status, json) = match found {
        Some(Value::Text(json)) => (status, json),
        _ => ("404 Not Found", r#"{"error":"there is no such note"}"#.into()),
    };
    println!("Status: {status}\nContent-Type: application/json\n\n{json}");
    Ok(())
}

/// The one cell of a statement's answer; none where it gives no row.
fn cell(statement: &str, parameters: &[&str]) -> Result<Option<Value>, Error> {
    let values: Vec<Value> = parameters.iter().map(|text| (*text).into()).collect();
    let found = sql(&statement.replace("NOTE", NOTE), &values)?;
    Ok(found.rows.into_iter().flatten().next())
}
