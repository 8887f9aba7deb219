//! What a Skerry function in Rust needs besides the standard library: SQL, HTTP, JSON strings, query parameters, the body.
//!
//! A function is a WASI command that answers one request: the request is in CGI variables (`PATH_INFO`,
//! `QUERY_STRING`, ...) and its body on stdin; the answer goes to stdout: headers, a blank line, the body.
//! All SQL of one request is one transaction, committed when the function ends normally with a status below 500.
#![allow(dead_code)]

use std::io::Read;

// The node's functions: ask with JSON and get the length of the answer, then have it copied, once.
#[link(wasm_import_module = "skerry")]
unsafe extern "C" {
    #[link_name = "sql"]
    fn import_sql(request: *const u8, size: usize) -> usize;
    #[link_name = "http"]
    fn import_http(request: *const u8, size: usize) -> usize;
    #[link_name = "result"]
    fn import_result(answer: *mut u8);
}

/// A value of SQLite's. Integers are exact to 64 bits.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

impl Value {
    /// As JSON; a BLOB is `{"$blob": base64}`.
    pub fn json(&self) -> String {
        match self {
            Value::Null => "null".into(),
            Value::Integer(number) => number.to_string(),
            Value::Real(number) => format!("{number:?}"),
            Value::Text(text) => quote(text),
            Value::Blob(bytes) => format!("{{\"$blob\":\"{}\"}}", encode(bytes)),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.into())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Integer(number)
    }
}

/// What a statement gave.
#[derive(Debug, Default)]
pub struct Answer {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Value>>,
    /// How many rows the statement wrote.
    pub changes: i64,
    /// The rowid of the last row that it inserted.
    pub last_id: Option<i64>,
}

/// Why a statement failed; the codes are in docs/errors.md.
#[derive(Debug)]
pub struct Error {
    pub code: String,
    pub message: String,
}

/// Run one SQL statement with values for its question marks.
pub fn sql(statement: &str, parameters: &[Value]) -> Result<Answer, Error> {
    let values: Vec<String> = parameters.iter().map(Value::json).collect();
    let request = format!("{{\"sql\":{},\"params\":[{}]}}", quote(statement), values.join(","));
    let answer = result(unsafe { import_sql(request.as_ptr(), request.len()) });
    let mut answered = Answer::default();
    let mut failed = None;
    let mut json = Json { text: &answer, at: 0 };
    json.items(b'{', |json| {
        let name = json.string();
        json.expect(b':');
        match name.as_str() {
            "columns" => json.items(b'[', |json| answered.columns.push(json.string())),
            "rows" => json.items(b'[', |json| {
                let mut row = Vec::new();
                json.items(b'[', |json| row.push(json.value()));
                answered.rows.push(row);
            }),
            "changes" => answered.changes = if let Value::Integer(count) = json.value() { count } else { 0 },
            "last_id" => answered.last_id = if let Value::Integer(id) = json.value() { Some(id) } else { None },
            _ => {
                let mut error = Error { code: String::new(), message: String::new() };
                json.items(b'{', |json| {
                    let code = json.string() == "code";
                    json.expect(b':');
                    *(if code { &mut error.code } else { &mut error.message }) = json.string();
                });
                failed = Some(error);
            }
        }
    });
    failed.map_or(Ok(answered), Err)
}

/// Have the node send an HTTP request: `{"method", "url", "headers": [[name, value], ...], "body"}`, of which the URL
/// alone must be there. The answer is `{"status", "headers", "body"}` or `{"error": {"code", "message"}}`.
pub fn http(request: &str) -> String {
    let answer = result(unsafe { import_http(request.as_ptr(), request.len()) });
    String::from_utf8(answer).expect("what a node answers is UTF-8")
}

/// The answer that waits.
fn result(size: usize) -> Vec<u8> {
    let mut answer = vec![0; size];
    unsafe { import_result(answer.as_mut_ptr()) };
    answer
}

/// A text as a JSON string, in quotes and escaped.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\0'..'\x20' => out.push_str(&format!("\\u{:04x}", c as u32)),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The parameter `name` of the query string, decoded.
pub fn parameter(name: &str) -> Option<String> {
    let query = std::env::var("QUERY_STRING").unwrap_or_default();
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (decoded(key) == name).then(|| decoded(value))
    })
}

/// The request's body.
pub fn body() -> Vec<u8> {
    let mut body = Vec::new();
    std::io::stdin().read_to_end(&mut body).expect("the body is there, whole");
    body
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 3).filter(|two| two.iter().all(u8::is_ascii_hexdigit));
        match (bytes[at], code.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads the JSON of a node's answer, which is whole and has no spaces.
struct Json<'a> {
    text: &'a [u8],
    at: usize,
}

impl Json<'_> {
    fn expect(&mut self, byte: u8) {
        assert_eq!(self.text[self.at], byte, "what a node answers is JSON");
        self.at += 1;
    }

    /// Each item of an array or object, which begins with `open`.
    fn items(&mut self, open: u8, mut item: impl FnMut(&mut Self)) {
        self.expect(open);
        while self.text[self.at] != open + 2 {
            item(self);
            if self.text[self.at] == b',' {
                self.at += 1;
            }
        }
        self.at += 1;
    }

    fn value(&mut self) -> Value {
        match self.text[self.at] {
            b'"' => Value::Text(self.string()),
            b'{' => {
                let mut bytes = Vec::new();
                self.items(b'{', |json| {
                    json.string();
                    json.expect(b':');
                    bytes = decode(&json.string());
                });
                Value::Blob(bytes)
            }
            b'n' => {
                self.at += 4;
                Value::Null
            }
            _ => {
                let start = self.at;
                while self.at < self.text.len() && !b",]}".contains(&self.text[self.at]) {
                    self.at += 1;
                }
                let number = std::str::from_utf8(&self.text[start..self.at]).expect("digits");
                number.parse().map_or_else(|_| Value::Real(number.parse().expect("a number")), Value::Integer)
            }
        }
    }

    fn string(&mut self) -> String {
        self.expect(b'"');
        let mut out = Vec::new();
        while self.text[self.at] != b'"' {
            let byte = self.text[self.at];
            self.at += 1;
            if byte != b'\\' {
                out.push(byte);
                continue;
            }
            let escape = self.text[self.at];
            self.at += 1;
            out.push(match escape {
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'u' => {
                    let mut point = self.hex();
                    if (0xd800..0xdc00).contains(&point) {
                        self.at += 2;
                        point = 0x10000 + ((point - 0xd800) << 10) + (self.hex() - 0xdc00);
                    }
                    let c = char::from_u32(point).unwrap_or('\u{fffd}');
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
                other => other,
            });
        }
        self.at += 1;
        String::from_utf8_lossy(&out).into_owned()
    }

    fn hex(&mut self) -> u32 {
        let digits = std::str::from_utf8(&self.text[self.at..self.at + 4]).expect("digits");
        self.at += 4;
        u32::from_str_radix(digits, 16).expect("digits")
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(bytes: &[u8]) -> String {
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | *byte as usize) << (8 * (3 - three.len()));
        for place in 0..4 {
            let letter = ALPHABET[bits >> (18 - 6 * place) & 63] as char;
            out.push(if place > three.len() { '=' } else { letter });
        }
    }
    out
}

/// The bytes of a text in base64; other characters are passed over.
pub fn decode(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut bits, mut count) = (0usize, 0);
    for value in text.bytes().filter_map(|letter| ALPHABET.iter().position(|other| *other == letter)) {
        bits = bits << 6 | value;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}
