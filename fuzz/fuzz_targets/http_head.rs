#![no_main]

use alcazar_proxy::{Scan, Scanner};
use libfuzzer_sys::fuzz_target;

// Bytes of a client: however they are cut into pieces, the same heads pass and the same ones are refused.
fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = (usize::from(input.0) + 1, input.1);
    let (whole, in_pieces) = (run(bytes, bytes.len().max(1)), run(bytes, step));
    assert_eq!(whole.heads, in_pieces.heads);
    // A line that is too long may be refused before its end has come, and so before it is known to be bad otherwise.
    assert_eq!(whole.refused, in_pieces.refused);
});

struct Outcome {
    heads: Vec<usize>,
    refused: bool,
}

fn run(bytes: &[u8], step: usize) -> Outcome {
    let (mut scanner, mut heads, mut at, mut come) = (Scanner::default(), Vec::new(), 0, 0);
    loop {
        match scanner.scan(&bytes[at..come]) {
            Err(_) => return Outcome { heads, refused: true },
            Ok(Scan::Skip(skipped)) => at += skipped,
            Ok(Scan::Head(length)) => {
                assert!(bytes[at..at + length].ends_with(b"\r\n\r\n"));
                heads.push(at);
                at += length;
            }
            Ok(Scan::Body(length)) => {
                assert!(length > 0);
                at += length;
            }
            Ok(Scan::Hold) => scanner.resume(),
            Ok(Scan::More) if come == bytes.len() => return Outcome { heads, refused: false },
            Ok(Scan::More) => come = (come + step).min(bytes.len()),
        }
    }
}
