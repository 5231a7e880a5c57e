//! Solid textures: a colour for every point of space, from integer hashes and a few waves.

use crate::geometry::{Vec3, dot};

/// How the two colours of a texture are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// In alternate cubes.
    Checker,
    /// In soft stripes across a direction.
    Stripes,
    /// In a sum of three plane waves.
    Waves,
    /// Mixed at random in every cube, each with a brightness of its own.
    Cells,
    /// Mixed by noise that is smooth from cube to cube, in three octaves.
    Noise,
    /// The first colour alone.
    Plain,
}

/// A solid texture.
#[derive(Clone, Debug, PartialEq)]
pub struct Texture {
    /// How the colours are laid out.
    pub pattern: Pattern,
    /// Cubes a unit of length.
    pub frequency: f64,
    /// Shift of the cubes, in cubes; keeps their faces off the surfaces that lie at round coordinates.
    pub phase: f64,
    /// Of the hash of the cubes.
    pub seed: i64,
    /// The two colours that are mixed.
    pub colours: [[f64; 3]; 2],
    /// Across the stripes, of length one.
    pub direction: Vec3,
    /// (wave vector, phase) of the plane waves.
    pub waves: [(Vec3, f64); 3],
}

impl Texture {
    /// The colour at a point, before light.
    #[inline]
    pub fn colour(&self, p: Vec3) -> [f64; 3] {
        let (share, gain) = self.mixture(p);
        let [a, b] = &self.colours;
        std::array::from_fn(|c| (a[c] + (b[c] - a[c]) * share) * gain)
    }

    /// The share of the second colour, and the brightness.
    fn mixture(&self, p: Vec3) -> (f64, f64) {
        match self.pattern {
            Pattern::Checker => ((self.cell(p).iter().sum::<i64>() & 1) as f64, 1.0),
            Pattern::Stripes => {
                let turn = dot(p, self.direction) * self.frequency * 2.5 + 6.0 * self.phase;
                (1.0 / (1.0 + libm::exp(-8.0 * libm::sin(turn))), 1.0)
            }
            Pattern::Waves => {
                let sum: f64 = self.waves.iter().map(|(wave, phase)| libm::sin(dot(*wave, p) + phase)).sum();
                (0.5 + 0.5 * libm::tanh(sum), 1.0)
            }
            Pattern::Cells => {
                let (share, brightness) = hash(self.cell(p), self.seed);
                (share, 0.55 + 0.6 * brightness)
            }
            Pattern::Noise => {
                let octave = |i: i32| self.smooth(p, f64::from(1 << i), i64::from(i)) / f64::from(1 << i);
                let sum = (octave(0) + octave(1) + octave(2)) / 1.75;
                // A sum of uniform numbers keeps to the middle; spread, both colours appear.
                ((2.2 * (sum - 0.5) + 0.5).clamp(0.0, 1.0), 0.85 + 0.3 * sum)
            }
            Pattern::Plain => (0.0, 1.0),
        }
    }

    /// Random numbers at the corners of cubes of 1 / `finer` of the size, interpolated by 3 t² − 2 t³ on every axis.
    fn smooth(&self, p: Vec3, finer: f64, octave: i64) -> f64 {
        let at = p.map(|x| x * self.frequency * finer + self.phase);
        let floor = at.map(f64::floor);
        let ease: Vec3 = std::array::from_fn(|axis| {
            let x = at[axis] - floor[axis];
            x * x * (3.0 - 2.0 * x)
        });
        let first = floor.map(|x| x as i64);
        (0..8)
            .map(|corner: i64| {
                let side = |axis: usize| corner >> axis & 1;
                let cube = std::array::from_fn(|axis| first[axis] + side(axis));
                let weight = |axis: usize| if side(axis) == 1 { ease[axis] } else { 1.0 - ease[axis] };
                weight(0) * weight(1) * weight(2) * hash(cube, self.seed + 977 * octave).0
            })
            .sum()
    }

    fn cell(&self, p: Vec3) -> [i64; 3] {
        p.map(|x| (x * self.frequency + self.phase).floor() as i64)
    }
}

/// Two numbers in 0..1 from the coordinates of a cube, by integer arithmetic alone.
fn hash([x, y, z]: [i64; 3], seed: i64) -> (f64, f64) {
    const MASK: i64 = 0x7fff_ffff;
    let mut h = x.wrapping_mul(73_856_093) ^ y.wrapping_mul(19_349_663) ^ z.wrapping_mul(83_492_791);
    h = (h ^ seed.wrapping_mul(2_654_435)) & MASK;
    h = (h ^ (h >> 15)).wrapping_mul(1_103_515_245) & MASK;
    h = (h ^ (h >> 13)).wrapping_mul(12_820_163) & MASK;
    h ^= h >> 16;
    ((h & 0xffff) as f64 / 65_536.0, ((h >> 8) & 0x7fff) as f64 / 32_768.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texture(pattern: Pattern) -> Texture {
        Texture {
            pattern,
            frequency: 2.0,
            phase: 0.5,
            seed: 12,
            colours: [[0.0; 3], [1.0; 3]],
            direction: [1.0, 0.0, 0.0],
            waves: [([1.0, 0.0, 0.0], 0.0), ([0.0, 1.0, 0.0], 0.0), ([0.0, 0.0, 1.0], 0.0)],
        }
    }

    #[test]
    fn checkers_alternate_and_stripes_and_waves_follow_their_formulas() {
        let checker = texture(Pattern::Checker);
        // Cubes of side ½ whose faces lie at ¼ + n/2.
        assert_eq!(checker.colour([0.0, 0.0, 0.0]), [0.0; 3]);
        assert_eq!(checker.colour([0.3, 0.0, 0.0]), [1.0; 3]);
        assert_eq!(checker.colour([-0.3, 0.3, 0.0]), [0.0; 3]);
        let stripes = texture(Pattern::Stripes).colour([0.4, 9.0, 9.0])[0];
        assert!((stripes - 1.0 / (1.0 + (-8.0 * 5f64.sin()).exp())).abs() < 1e-12);
        let waves = texture(Pattern::Waves).colour([0.1, 0.2, 0.3])[0];
        let sum = 0.1f64.sin() + 0.2f64.sin() + 0.3f64.sin();
        assert!((waves - (0.5 + 0.5 * sum.tanh())).abs() < 1e-12);
    }

    #[test]
    fn noise_is_smooth_and_reaches_both_colours() {
        let noise = texture(Pattern::Noise);
        let along: Vec<f64> = (0..4000).map(|i| noise.colour([f64::from(i) / 400.0, 0.31, -0.2])[0]).collect();
        assert!(along.windows(2).all(|w| (w[0] - w[1]).abs() < 0.06));
        let (low, high) = along.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        assert!(low < 0.2 && high > 0.75, "{low} to {high}");
        assert_eq!(texture(Pattern::Plain).colour([0.3, 0.2, 0.1]), [0.0; 3]);
    }

    #[test]
    fn cells_are_constant_inside_and_spread_evenly() {
        let cells = texture(Pattern::Cells);
        assert_eq!(cells.colour([0.0; 3]), cells.colour([0.2, -0.2, 0.1]));
        let values: Vec<f64> = (0..4096).map(|i| hash([i % 16, i / 16 % 16, i / 256 - 8], 99).0).collect();
        let mean = values.iter().sum::<f64>() / 4096.0;
        assert!((mean - 0.5).abs() < 0.03, "{mean}");
        assert!(values.iter().any(|v| *v < 0.05) && values.iter().any(|v| *v > 0.95));
    }
}
