//! The node calls this by the schedule in function.toml, and a tick is kept in the table. GET lists the last ten.

mod skerry;

use skerry::{sql, Error};
use std::env::var;

/// An error goes to stderr, which is the node's log; it undoes what the call wrote, and the tick has failed.
fn main() -> Result<(), Error> {
    // No client can send these headers.
    if var("HTTP_SKERRY_EVENT").is_ok_and(|event| event == "schedule") {
        let due = var("HTTP_SKERRY_SCHEDULED_AT").unwrap_or_default();
        sql("INSERT INTO notes (due) VALUES (?)", &[due.as_str().into()])?;
        sql("DELETE FROM notes WHERE due < strftime('%Y-%m-%dT%H:%M:%SZ', ?, '-30 days')", &[due.as_str().into()])?;
        println!("Content-Type: application/json\n\n{{\"kept\":true}}");
    } else if var("REQUEST_METHOD").is_ok_and(|method| method == "GET") {
        let found = sql("SELECT due FROM notes ORDER BY due DESC LIMIT 10", &[])?;
        let ticks: Vec<String> = found.rows.iter().map(|row| row[0].json()).collect();
        println!("Content-Type: application/json\n\n[{}]", ticks.join(","));
    } else {
        println!("Status: 405 Method Not Allowed\nAllow: GET\nContent-Type: text/plain\n\nonly the schedule starts it");
    }
    Ok(())
}
