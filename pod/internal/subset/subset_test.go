package subset

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func addresses(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("10.1.%d.%d:9100", i/250, i%250+2))
	}
	return all
}

func itself(address string) string { return address }

// clientsOf returns how many of the clients have each instance in their subset.
func clientsOf(instances []string, clients, size int, random *rand.Rand) map[string]int {
	n := map[string]int{}
	for range clients {
		for _, a := range Choose(Subset{size, random.Uint64()}, instances, itself) {
			n[a]++
		}
	}
	return n
}

func TestClientsSpreadOverInstances(t *testing.T) {
	for _, test := range []struct {
		clients, size, instances int
		most                     float64 // multiple of the mean that the busiest instance may have
		idle                     [2]int  // instances without a client, in percent
	}{
		{200, 20, 100, 1.5, [2]int{0, 0}},
		{1000, 20, 1000, 2.5, [2]int{0, 0}},
		{50, 20, 1000, 8, [2]int{33, 40}}, // as by chance: e^-1
	} {
		var sum, worst, idle float64
		const rounds = 20
		for round := range uint64(rounds) {
			n := clientsOf(addresses(test.instances), test.clients, test.size, rand.New(rand.NewPCG(2, round)))
			most := 0
			for _, clients := range n {
				most = max(most, clients)
			}
			mean := float64(test.clients*test.size) / float64(test.instances)
			sum, worst = sum+float64(most)/mean/rounds, max(worst, float64(most)/mean)
			idle += float64(test.instances-len(n)) / float64(test.instances) * 100 / rounds
		}
		t.Logf("%d clients of %d of %d instances: the busiest instance has %.2f times the mean, at worst of %d rounds %.2f; %.0f %% have no client",
			test.clients, test.size, test.instances, sum, rounds, worst, idle)
		if sum > test.most {
			t.Errorf("%d clients of %d of %d instances: the busiest instance has %.2f times the mean, want %.2f", test.clients, test.size, test.instances, sum, test.most)
		}
		if idle < float64(test.idle[0]) || idle > float64(test.idle[1]) {
			t.Errorf("%d clients of %d of %d instances: %.0f %% have no client, want %d to %d", test.clients, test.size, test.instances, idle, test.idle[0], test.idle[1])
		}
	}
}

// The subset of a client changes only by what has come or gone.
func TestChangesMoveFewInstances(t *testing.T) {
	all := addresses(100)
	for seed := range uint64(50) {
		s := Subset{20, seed}
		before := Choose(s, all, itself)
		next := Choose(Subset{21, seed}, all, itself)[20]
		for _, gone := range all {
			left := slices.DeleteFunc(slices.Clone(all), func(a string) bool { return a == gone })
			want := before
			if i := slices.Index(before, gone); i >= 0 {
				want = append(slices.Delete(slices.Clone(before), i, i+1), next)
			}
			if got := Choose(s, left, itself); !slices.Equal(got, want) {
				t.Fatalf("seed %d: without %s it has %v, want %v", seed, gone, got, want)
			}
		}
		for range 10 { // the order of the instances is no matter
			rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			if got := Choose(s, all, itself); !slices.Equal(got, before) {
				t.Fatalf("seed %d: in another order %v, want %v", seed, got, before)
			}
		}
	}
}

func TestSmallServiceIsCalledAsAWhole(t *testing.T) {
	all := addresses(20)
	for _, size := range []int{-1, 0, 20, 21} {
		if got := Choose(New(size), all, itself); !slices.Equal(got, all) {
			t.Errorf("a subset of %d of 20 instances has %d", size, len(got))
		}
	}
	if got := Choose(New(1), all, itself); len(got) != 1 {
		t.Errorf("a subset of 1 has %v", got)
	}
	if got := Choose(New(1), nil, itself); len(got) != 0 {
		t.Errorf("a subset of none has %v", got)
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			all, s := addresses(n), New(20)
			b.ReportAllocs()
			for b.Loop() {
				Choose(s, all, itself)
			}
		})
	}
}
