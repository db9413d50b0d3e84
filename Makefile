# Two commands set everything up on a fresh Debian machine: `make demo` and `make test`. Both need root (network namespaces).
.PHONY: demo listing test deps fixture lint unit kernel flips kills faults upgrades starts churn away mutants fuzz bench bench-quick bench-pure cold-start commits scrape flood image deploy-check kernel61 clean

APT := gcc pkg-config libmnl-dev libnftnl-dev nftables iproute2 iptables conntrack openssl procps prometheus runc

demo: deps
	cargo build --quiet --workspace --bins
	./target/debug/demo

# docs/listing.nft: what nft lists on a node of the demo.
listing: deps
	cargo build --quiet --workspace --bins
	./target/debug/demo --listing > docs/listing.nft.new
	mv docs/listing.nft.new docs/listing.nft

test: deps fixture lint unit kernel

# What the build and the lab need, by apt; nothing is done when all of it is there.
deps:
	@./integration/deps.sh $(APT)

# etcd, the API server, kube-proxy, kubectl, flanneld, the CNI plugins and helm: built once, then cached in target/fixture.
fixture: deps
	@./integration/fixture.sh

lint:
	cargo fmt --check
	cargo clippy --quiet --workspace --all-targets

# Everything that runs without the kernel's help.
unit:
	cargo test --package flatfell-rules

# Real netlink, real packets: in network namespaces of the tests' own.
kernel:
	cargo build --quiet --workspace --bins
	cargo test --package flatfell --package flatfell-cni --package flatfell-integration --package flatfell-fuzz --package flatfell-bench

# 20,000 changes of each kind under traffic; `make test` makes 500 of each.
flips: deps
	FLATFELL_FLIPS=20000 cargo test --package flatfell-integration --test flips -- --nocapture

# 1,000 kills at random moments of random changes under traffic; `make test` makes thirty.
kills: deps
	cargo build --quiet --workspace --bins
	FLATFELL_KILLS=1000 cargo test --package flatfell-integration --test survive -- --nocapture it_dies

# 500 rounds of faults between daemon and kernel, with locked tables and with shared ones; `make test` makes sixteen of each.
faults: deps
	cargo build --quiet --workspace --bins
	FLATFELL_FAULTS=500 cargo test --package flatfell-integration --test faults -- --nocapture

# Builds of two table layouts replace each other 201 times under traffic; `make test` has them do it nine times.
upgrades: deps
	cargo build --quiet --workspace --bins
	FLATFELL_UPGRADES=201 cargo test --package flatfell-integration --test upgrade -- --nocapture

# 5,000 starts of pods with the CNI plugin and 5,000 without; `make test` makes sixty of each.
starts: deps
	cargo build --quiet --workspace --bins
	FLATFELL_STARTS=5000 cargo test --package flatfell-integration --test starts -- --nocapture --test-threads=1

# The API server is away for two minutes; `make test` takes twenty seconds.
away: deps fixture
	cargo build --quiet --workspace --bins
	FLATFELL_AWAY=120 cargo test --package flatfell-integration --test cluster_source -- --nocapture away

# 200 changes, restarts and kills under traffic, counted, also with ids that go from one to another; `make test` makes forty.
churn: deps
	cargo build --quiet --workspace --bins
	FLATFELL_CHURN=200 cargo test --package flatfell-integration --test churn -- --nocapture
	FLATFELL_RULE_IDS=8 FLATFELL_CHURN=200 cargo test --package flatfell-integration --test churn -- --nocapture nothing_falls

# A reduced matrix on Debian's own kernel 6.1, in an emulated machine; not part of `make test`: slow, and downloads a kernel.
kernel61:
	@./integration/kernel61/run.sh

# A random 300 of the mutants of the rooms that decide; not part of `make test` (hours of machine time).
mutants: deps
	cargo mutants --version >/dev/null 2>&1 || cargo install --locked cargo-mutants
	./integration/mutants.sh 300

# Each fuzzer for FUZZ_SECONDS of processor time, or those of FUZZERS alone; needs a nightly compiler. `make test` replays the corpora without one.
FUZZ_SECONDS ?= 600
fuzz: deps
	cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	./integration/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZERS)

# What a packet pays, against conntrack and NAT and against others, in the lab; writes docs/benchmarks/ (minutes). QUICK=1 for `bench-quick`.
bench: deps
ifdef QUICK
	@$(MAKE) bench-quick
else
	@./integration/deps.sh ipset
	cargo build --quiet --release --package flatfell --package flatfell-bench --bins
	./target/release/packets --out docs/benchmarks
endif

# The same for what the bars are about only, in less than three minutes; writes nothing.
bench-quick: deps
	cargo build --quiet --release --package flatfell --package flatfell-bench --bins
	./target/release/packets --quick --rounds 11

# The pure parts: from objects to the bytes of a transaction.
bench-pure: deps
	cargo bench --package flatfell-bench --bench pure

# Process start to policy in force, and memory, with a real API server.
cold-start: deps fixture
	cargo build --quiet --release --package flatfell --package flatfell-bench --bins
	./target/release/cold_start 10000 50000

# From a decoded event to the kernel's acknowledgement.
commits: deps
	cargo build --quiet --release --package flatfell-bench --bins
	./target/release/commits

# CPU of a scrape with 10,000 rules in the kernel, and whether a change of policy waits for it.
scrape: deps
	cargo build --quiet --release --package flatfell --package flatfell-bench --bins
	./target/release/scrape 1000 10000

# 100,000 denied packets a second: the daemon's share of a core, the latency of other traffic with and without the flow log.
flood: deps
	cargo build --quiet --release --package flatfell --package flatfell-bench --bins
	./target/release/flood 100000

# The image of this machine's architecture, as an OCI archive in target/image; no container engine is needed.
image: deps
	./deploy/image.sh

# Chart and kustomize render the same objects; the image enforces under runc with the DaemonSet's security context.
deploy-check: deps fixture
	cargo build --quiet --workspace --bins
	cargo test --package flatfell-integration --test deploy --test container --test admitted

clean:
	cargo clean
