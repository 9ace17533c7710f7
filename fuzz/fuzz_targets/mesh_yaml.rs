//! Any text as `mesh.yaml`: a world, or errors that can be shown.
#![no_main]

use alcazar_control::{AddressBook, Addresses, World};
use alcazar_yaml::{SourceFile, Style, render_all};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let file = SourceFile::new("mesh.yaml", text);
    let mut book = AddressBook::default();
    let addresses = Addresses::Chosen { book: &mut book, is_free: &|_| true };
    match World::build(&file, &[], addresses) {
        Ok(_) => assert_eq!(AddressBook::from_json(&book.to_json()).ok(), Some(book)),
        Err(errors) => {
            assert!(!errors.is_empty());
            assert!(!render_all(&errors, Style::Plain).is_empty());
        }
    }
});
