//! Changing inputs: bit flips, splices, insertions and deletions, and numbers that are made a little
//! larger, a little smaller or extreme, as lengths and offsets go wrong.
//!
//! Inputs with [`Layout::Records`] are taken apart first. Their records are changed, doubled, dropped,
//! exchanged and borrowed from other inputs, and put together again with right lengths, so that a
//! change to the first does not garble the rest.

use cnet_testkit::rng::Rng;

use crate::Layout;

/// The longest input that is made.
pub const MAX_LEN: usize = 32 * 1024;
/// The most records of one input.
const MAX_RECORDS: usize = 24;
/// Numbers at which code that computes with lengths goes wrong.
const EXTREMES: [u16; 10] = [0, 1, 7, 8, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff];
/// Bytes at the start of a frame that are changed more often than the rest: the headers.
const HEADERS: usize = 96;

/// One step of an input of records: what is to happen, and what with.
///
/// In an input it is a byte of operation, two of length, most significant first, and the bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// What is to happen; what it means is the target's business.
    pub operation: u8,
    /// What it happens with.
    pub bytes: Vec<u8>,
}

/// Takes an input of records apart: the settings, and the records. Whatever is cut short is taken as
/// it is, so any bytes are an input.
pub fn parse(input: &[u8]) -> (u8, Vec<Record>) {
    let Some((&settings, mut rest)) = input.split_first() else {
        return (0, Vec::new());
    };
    let mut records = Vec::new();
    while let Some((&[operation, high, low], behind)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([high, low])).min(behind.len());
        let (bytes, after) = behind.split_at(len);
        records.push(Record {
            operation,
            bytes: bytes.to_vec(),
        });
        rest = after;
    }
    (settings, records)
}

/// Puts an input of records together.
pub fn build(settings: u8, records: &[Record]) -> Vec<u8> {
    let mut input = vec![settings];
    for record in records {
        let len = record.bytes.len().min(usize::from(u16::MAX));
        input.push(record.operation);
        input.extend_from_slice(&(len as u16).to_be_bytes());
        input.extend_from_slice(&record.bytes[..len]);
    }
    input
}

/// A changed copy of one of `pool`, which is not empty.
pub fn mutate(layout: Layout, pool: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let base = &pool[rng.below(pool.len())];
    let mut input = match layout {
        Layout::Plain => {
            let mut bytes = base.clone();
            change(&mut bytes, pool, rng);
            bytes
        }
        Layout::Records => {
            let (mut settings, mut records) = parse(base);
            if rng.chance(500) {
                settings = rng.next_u64() as u8;
            }
            for _ in 0..rng.pick(&[1, 1, 2, 3, 6]) {
                change_records(&mut records, pool, rng);
            }
            build(settings, &records)
        }
    };
    input.truncate(MAX_LEN);
    input
}

/// Several changes to plain bytes.
fn change(bytes: &mut Vec<u8>, pool: &[Vec<u8>], rng: &mut Rng) {
    for _ in 0..rng.pick(&[1, 1, 1, 2, 4, 8]) {
        let other = &pool[rng.below(pool.len())];
        let limit = bytes.len();
        change_once(bytes, other, limit, rng);
    }
}

fn change_records(records: &mut Vec<Record>, pool: &[Vec<u8>], rng: &mut Rng) {
    let (_, others) = parse(&pool[rng.below(pool.len())]);
    if records.is_empty() || rng.chance(100) {
        // Borrow one from another input.
        if !others.is_empty() && records.len() < MAX_RECORDS {
            let place = rng.below(records.len() + 1);
            records.insert(place, others[rng.below(others.len())].clone());
        }
        return;
    }
    let n = rng.below(records.len());
    match rng.below(12) {
        0 => {
            records.remove(n);
        }
        1 if records.len() < MAX_RECORDS => {
            let twin = records[n].clone();
            let place = rng.below(records.len() + 1);
            records.insert(place, twin);
        }
        2 => {
            let other = rng.below(records.len());
            records.swap(n, other);
        }
        3 => records[n].operation = rng.next_u64() as u8,
        4 => records[n].operation ^= 1 << rng.below(8),
        _ => {
            let empty = Vec::new();
            let other = match others.is_empty() {
                true => &empty,
                false => &others[rng.below(others.len())].bytes,
            };
            let bytes = &mut records[n].bytes;
            let limit = match rng.chance(700) {
                true => bytes.len().min(HEADERS),
                false => bytes.len(),
            };
            change_once(bytes, other, limit, rng);
        }
    }
}

/// One change, at a place before `limit`.
fn change_once(bytes: &mut Vec<u8>, other: &[u8], limit: usize, rng: &mut Rng) {
    let at = rng.below(limit.min(bytes.len()) + 1);
    match rng.below(10) {
        0 | 1 => flip(bytes, at, rng),
        2 => set(bytes, at, rng.next_u64() as u8),
        3 => set(bytes, at, rng.pick(&[0, 1, 0x7f, 0x80, 0xff])),
        4 | 5 => shift_number(bytes, at, rng),
        6 => {
            let more = rng.within(1..rng.clone().pick(&[2, 9, 65, 513]));
            let new = rng.bytes(more);
            bytes.splice(at..at, new);
        }
        7 => {
            let end = (at + rng.within(1..17)).min(bytes.len());
            bytes.drain(at..end);
        }
        8 => bytes.truncate(at),
        _ if !other.is_empty() => {
            // The head of one, some of another, and perhaps the tail.
            let from = rng.below(other.len());
            let to = rng.within(from..other.len() + 1);
            let end = match rng.chance(500) {
                true => bytes.len(),
                false => (at + to - from).min(bytes.len()),
            };
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        _ => flip(bytes, at, rng),
    }
}

fn flip(bytes: &mut [u8], at: usize, rng: &mut Rng) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << rng.below(8);
    }
}

fn set(bytes: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value;
    }
}

/// Two bytes taken as a number, as lengths and offsets are.
fn shift_number(bytes: &mut [u8], at: usize, rng: &mut Rng) {
    let Some(place) = bytes.get_mut(at..at + 2) else {
        return flip(bytes, at, rng);
    };
    let old = u16::from_be_bytes([place[0], place[1]]);
    let new = match rng.below(4) {
        0 => old.wrapping_add(rng.within(1..17) as u16),
        1 => old.wrapping_sub(rng.within(1..17) as u16),
        2 => rng.pick(&EXTREMES),
        _ => rng.pick(&EXTREMES).swap_bytes(),
    };
    place.copy_from_slice(&new.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart_and_put_together() {
        let records = vec![
            Record {
                operation: 3,
                bytes: vec![1, 2, 3],
            },
            Record {
                operation: 0,
                bytes: Vec::new(),
            },
        ];
        let input = build(9, &records);
        assert_eq!(parse(&input), (9, records.clone()));
        // Cut short, the last one is what is left of it.
        let (settings, cut) = parse(&input[..6]);
        assert_eq!((settings, cut[0].bytes.as_slice()), (9, &[1, 2][..]));
        assert_eq!(parse(&[]), (0, Vec::new()));
    }

    #[test]
    fn equal_seeds_mutate_alike_and_within_bounds() {
        let pool = vec![vec![7; MAX_LEN], vec![1, 2, 3], Vec::new()];
        for layout in [Layout::Plain, Layout::Records] {
            let draw = || {
                let mut rng = Rng::new(5);
                let inputs = (0..500).map(|_| mutate(layout, &pool, &mut rng));
                inputs.collect::<Vec<_>>()
            };
            let inputs = draw();
            assert_eq!(inputs, draw());
            assert!(inputs.iter().all(|input| input.len() <= MAX_LEN));
        }
    }
}
