//! By WAGI: `warm` runs at build, and main in each call. The order of a HashMap, and its seed, are a call's own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

static TABLE: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());
static CALLS: Mutex<u32> = Mutex::new(0);

#[no_mangle]
pub extern "C" fn warm() {
    let mut table = TABLE.lock().unwrap();
    for i in 0..100_000 {
        table.insert(i, i.to_string());
    }
}

/// What a snapshot would repeat: the seed of all HashMaps.
#[no_mangle]
pub extern "C" fn seeded() {
    std::hint::black_box(HashMap::<u32, u32>::from([(1, 1)]));
}

fn main() {
    let mut calls = CALLS.lock().unwrap();
    *calls += 1;
    let order: HashMap<u32, u32> = (0..40).map(|i| (i, i)).collect();
    let random: Vec<String> = order.keys().map(u32::to_string).collect();
    let left = TABLE.lock().unwrap()[&99_999].clone();
    let variable = std::env::var("WORD").unwrap();
    println!("Content-Type: text/plain\n\nleft {left}\ncalls {calls}\nvariable {variable}\nrandom {}", random.join("-"));
}
