// An Extism plug-in of Rust's compiler alone, by the imports themselves: Extism's PDK for Rust comes from no registry
// that the tests use. The same exports as plugin.go and ../plugin.ts.

#[link(wasm_import_module = "extism:host/env")]
extern "C" {
    fn alloc(length: u64) -> u64;
    fn length(handle: u64) -> u64;
    fn load_u8(at: u64) -> u8;
    fn store_u8(at: u64, value: u8);
    fn input_length() -> u64;
    fn input_load_u8(at: u64) -> u8;
    fn output_set(handle: u64, length: u64);
    fn error_set(handle: u64);
    fn config_get(key: u64) -> u64;
    fn var_get(key: u64) -> u64;
    fn var_set(key: u64, value: u64);
    fn log_warn(message: u64);
}

fn block(data: &[u8]) -> u64 {
    unsafe {
        let made = alloc(data.len() as u64);
        for (at, byte) in data.iter().enumerate() {
            store_u8(made + at as u64, *byte);
        }
        made
    }
}

fn content(handle: u64) -> String {
    let data = unsafe { (0..length(handle)).map(|at| load_u8(handle + at)).collect() };
    String::from_utf8(data).unwrap()
}

fn input() -> Vec<u8> {
    unsafe { (0..input_length()).map(|at| input_load_u8(at)).collect() }
}

fn output(data: &[u8]) -> i32 {
    unsafe { output_set(block(data), data.len() as u64) };
    0
}

#[no_mangle]
pub extern "C" fn echo() -> i32 {
    output(&input())
}

#[no_mangle]
pub extern "C" fn count_vowels() -> i32 {
    let text = String::from_utf8(input()).unwrap();
    let count = text.chars().filter(|letter| "aeiouAEIOU".contains(*letter)).count();
    output(format!("{{\"count\":{count},\"begun\":7}}").as_bytes())
}

#[no_mangle]
pub extern "C" fn everything() -> i32 {
    unsafe {
        let thing = content(config_get(block(b"thing")));
        var_set(block(b"a"), block(b"this is var a"));
        let a = content(var_get(block(b"a")));
        var_set(block(b"a"), 0);
        let left = if var_get(block(b"a")) == 0 { "" } else { ", left" };
        log_warn(block(b"a warning"));
        output(format!("{thing}, {a}{left}").as_bytes())
    }
}

#[no_mangle]
pub extern "C" fn fail() -> i32 {
    3
}

#[no_mangle]
pub extern "C" fn complain() -> i32 {
    unsafe { error_set(block(b"what it says")) };
    1
}

#[no_mangle]
pub extern "C" fn broken() -> i32 {
    panic!("on purpose")
}
