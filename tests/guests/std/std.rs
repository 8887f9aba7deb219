//! What of Rust's standard library a function can rely on: a line of name and value for each.
mod skerry;

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

fn main() {
    match std::env::var("PATH_INFO").unwrap_or_default().as_str() {
        "/exit" => std::process::exit(3),
        "/panic" => panic!("on purpose"),
        _ => {}
    }
    let began = Instant::now();
    std::thread::sleep(Duration::from_millis(20));
    let slept = began.elapsed();
    let year = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 31_557_600 + 1970;
    // Its keys come from the system's random numbers.
    let map: HashMap<u32, String> = (0..1000).map(|n| (n, n.to_string())).collect();
    let order: Vec<u32> = map.keys().copied().take(8).collect();
    let bytes = skerry::body();
    let large: Vec<u64> = (0..1_000_000).collect();
    let threads = std::thread::Builder::new().spawn(|| ()).is_err();
    println!("Content-Type: text/plain\n");
    println!("clock {}", year >= 2025 && Instant::now() >= began);
    println!("sleep {}", slept >= Duration::from_millis(20));
    println!("random {order:?}");
    println!("variable {:?}", std::env::var("GREETING"));
    println!("variables {}", std::env::vars().count() > 8);
    println!("arguments {:?}", std::env::args().collect::<Vec<_>>());
    println!("body {}", bytes.iter().map(|byte| *byte as u64).sum::<u64>());
    println!("memory {}", large.iter().sum::<u64>());
    println!("threads {threads}");
    println!("read {:?}", std::fs::read("/etc/passwd").is_err());
    println!("write {:?}", std::fs::write("made", "x").is_err());
    println!("list {:?}", std::fs::read_dir("/").is_err());
    println!("connect {:?}", std::net::TcpStream::connect("127.0.0.1:80").is_err());
    println!("number {}", "1.5e3".parse::<f64>().unwrap() + (2.0f64).powf(0.5).floor());
    println!("http {}", skerry::http(r#"{"url":"https://a.example/"}"#).contains("not_granted"));
    eprintln!("a line in the log");
}
