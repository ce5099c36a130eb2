//! Links the test guest at 1 MiB, as multiboot kernels are.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-link-arg-bins=-T{dir}/guest.ld");
    println!("cargo:rustc-link-arg-bins=-n");
    println!("cargo:rerun-if-changed=guest.ld");
}
