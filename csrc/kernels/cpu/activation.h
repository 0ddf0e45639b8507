// sigmoid() and tanh() of vectors: within 1e-7 everywhere in float32, 2e-8 in the mean, and tanh
// relatively within 2.4e-7, however small. NaN is kept, infinities saturate. Included inside an
// ISA's namespace.
//
// Both rest on 2^t = 2^n * (1 + f * q(f)) with t = n + f, and q a minimax polynomial: n integral
// and |f| <= 1/2, or, with a table of 2^(k/16), n a multiple of 1/16 and |f| <= 1/32.

template <class E>
struct ActivationConstants;

template <>
struct ActivationConstants<float> {
  static constexpr float kLog2e = 1.44269504088896341f;
  static constexpr float kSigmoidLimit = 60.0f;  // sigmoid(-60) = 9e-27
  static constexpr float kTanhLimit = 9.1f;      // tanh(9.02) rounds to 1

  static constexpr float kExp2m1[] = {// relative error 8e-9 on |f| <= 1/2
                                      0.69314718807117623416f,   0.2402265076095730702f,
                                      0.055503568986270729206f,  0.0096180823706166601035f,
                                      0.0013390978248123866895f, 0.00015453262409320673153f};
  static constexpr float kTableRough[] = {
      // relative error 1.1e-7 on |f| <= 1/32
      0.693147181036832f, 0.24023355147163294f, 0.05550410856290694f};
  static constexpr float kTableExp2m1[] = {
      // relative error 3e-9 on |f| <= 1/32
      0.6931471804010029f, 0.2402265070509185f, 0.055505410767854826f, 0.009618129099477827f};
};

template <>
struct ActivationConstants<double> {
  static constexpr double kLog2e = 1.44269504088896340736;
  static constexpr double kSigmoidLimit = 300.0;
  static constexpr double kTanhLimit = 19.1;
  static constexpr double kExp2m1[] = {
      // relative error 2e-17 on |f| <= 1/2
      0.69314718055994530942,     0.24022650695910098491,   0.055504108664821594483,
      0.0096181291076067151349,   0.0013333558146416842887, 0.00015403530442027068268,
      0.000015252733829991239541, 1.3215442410711871372e-6, 1.017806235138810327e-7,
      7.0726213565393493909e-9,   4.4549794711760614859e-10};
};

// c[0] + c[1] x + c[2] x^2 + ...
template <class V, class E, int Terms>
FL_INLINE V polynomial(const V& x, const E (&c)[Terms]) {
  V sum = V::set1(c[Terms - 1]);
#pragma GCC unroll 16
  for (int i = Terms - 2; i >= 0; --i) sum = fma(sum, x, V::set1(c[i]));
  return sum;
}

// 2^(x * log2_base) = e * (1 + r), |r| < 0.42; for small x e is 1.
template <class V>
struct Power {
  V e, r;
};
enum class Small { kExact, kRough };  // whether r must be relatively exact for small x
template <Small small, class V>
FL_INLINE Power<V> power_of_two(const V& x, typename V::Element log2_base) {
  using E = typename V::Element;
  using C = ActivationConstants<E>;
  const V scale = V::set1(log2_base);
  if constexpr (has_power_table<E>()) {
    V e, low;
    const V f = fms(x, scale, table_power(x, scale, e, low));
    if constexpr (small == Small::kRough) return {e, f * polynomial(f, C::kTableRough)};
    return {e, fma(f, polynomial(f, C::kTableExp2m1), low)};
  } else {
    const V n = round_product(x, scale);
    const V f = fms(x, scale, n);
    return {scale2(V::set1(1), n), f * polynomial(f, C::kExp2m1)};
  }
}

// 1 / (1 + e^-x), as if the sum had not been rounded: what it loses is known exactly, and is worth
// a third of the whole error.
template <class V>
FL_INLINE V sigmoid(const V& x) {
  using C = ActivationConstants<typename V::Element>;
  const V one = V::set1(1), limit = V::set1(C::kSigmoidLimit);
  const V bounded = vmax(V::set1(-C::kSigmoidLimit), vmin(limit, x));
  const Power<V> power = power_of_two<Small::kRough>(bounded, -C::kLog2e);
  const V b = fma(power.e, power.r, power.e);
  const V sum = opaque(one + b);  // or the compiler may cancel it below
  return reciprocal(sum, b - (sum - one));
}

// With t = e^(2|x|) - 1, which is exact to the last place or two for any x: t / (t + 2).
template <class V>
FL_INLINE V tanh(const V& x) {
  using C = ActivationConstants<typename V::Element>;
  const V one = V::set1(1), two = V::set1(2);
  const V size = vmin(V::set1(C::kTanhLimit), absolute(x));
  const Power<V> power = power_of_two<Small::kExact>(size, 2 * C::kLog2e);
  const V t = fma(power.e, power.r, power.e - one);
  return with_sign_of(x, quotient(t, t + two));
}

template <class V>
FL_INLINE V one_minus(const V& x) {
  return V::set1(1) - x;
}
template <class V>
FL_INLINE V one_minus_square(const V& x) {
  return fnma(x, x, V::set1(1));
}
