//! A simulated node for tests: the kernel's checks and the kernel's verdicts, without a kernel.
//!
//! In: operations and packets. Out: what nftables would do with them. What always holds: nothing here shares code with what it tests.
