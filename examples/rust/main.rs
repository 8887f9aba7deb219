//! Notes by author: POST ?author=ada keeps the body as a note, GET ?author=ada lists ada's notes.

mod skerry;

use skerry::{body, parameter, quote, sql};

/// Status, and the JSON of the answer's body.
type Answer = (&'static str, String);

fn main() {
    let method = std::env::var("REQUEST_METHOD").unwrap_or_default();
    let (status, json) = match (method.as_str(), parameter("author")) {
        (_, None) => ("400 Bad Request", r#"{"error":"say whose notes: ?author=NAME"}"#.into()),
        ("POST", Some(author)) => add(&author, &String::from_utf8_lossy(&body())).unwrap_or_else(failed),
        ("GET", Some(author)) => list(&author).unwrap_or_else(failed),
        _ => {
            println!("Allow: GET, POST");
            ("405 Method Not Allowed", r#"{"error":"only GET and POST"}"#.into())
        }
    };
    println!("Status: {status}\nContent-Type: application/json\n\n{json}");
}

fn add(author: &str, text: &str) -> Result<Answer, skerry::Error> {
    let found = sql("INSERT INTO notes (author, text) VALUES (?, ?) RETURNING id", &[author.into(), text.into()])?;
    Ok(("201 Created", format!(r#"{{"author":{},"id":{}}}"#, quote(author), found.rows[0][0].json())))
}

fn list(author: &str) -> Result<Answer, skerry::Error> {
    let found = sql("SELECT text FROM notes WHERE author = ? ORDER BY id", &[author.into()])?;
    let notes: Vec<String> = found.rows.iter().map(|row| row[0].json()).collect();
    Ok(("200 OK", format!(r#"{{"author":{},"notes":[{}]}}"#, quote(author), notes.join(","))))
}

/// What goes to stderr is the node's log, and a status of 500 and above undoes what the call wrote.
fn failed(error: skerry::Error) -> Answer {
    eprintln!("{}: {}", error.code, error.message);
    ("500 Internal Server Error", r#"{"error":"the database refused it"}"#.into())
}
