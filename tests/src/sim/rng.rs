//! The only source of chance: SplitMix64, so that a seed is a whole history.

/// A stream of numbers made from one seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to below `high`; `low` where that is empty.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        if high <= low { low } else { low + self.next_u64() % (high - low) }
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.range(0, len as u64)).unwrap_or(0)
    }

    /// True so many times in a million.
    pub fn ppm(&mut self, chance: u32) -> bool {
        self.next_u64() % 1_000_000 < u64::from(chance)
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, chance: u32) -> bool {
        self.ppm(chance * 10_000)
    }

    /// Between `low` and `high`, every order of magnitude equally often.
    pub fn scale(&mut self, low: u64, high: u64) -> u64 {
        let (mut low, high) = (low.max(1), high.max(1));
        let steps = (high / low).max(1).ilog2();
        low <<= self.range(0, u64::from(steps) + 1);
        self.range(low, (low * 2).min(high.max(low + 1)))
    }
}
